import pytest
import torch
from tiny import letters

import eelib
from eelib import evaluation
from eelib.errors import InvalidInputError
from eelib.evaluation import HeadVariant


@pytest.fixture(scope="module")
def setting(llama):
    """A tiny model, a corpus whose first two positions of a document do not count, and a teacher."""
    generator = torch.Generator().manual_seed(0)
    splits = {
        name: [torch.randint(3, 97, (length,), generator=generator) for length in lengths]
        for name, lengths in (("train", (12, 10, 8)), ("calibration", (9,)), ("test", (11, 7, 9)))
    }
    masks = {name: [torch.arange(len(text)) >= 2 for text in texts] for name, texts in splits.items()}
    corpus = eelib.Corpus(**splits, loss_mask=masks, written=7)
    return llama, corpus, eelib.Teacher(llama, (2, 4))


TRAINING = eelib.TrainConfig(epochs=1, batch_size=1, shuffle_buffer=1)


def test_a_row_a_variant_and_depth(setting):
    model, corpus, teacher = setting
    variants = [HeadVariant("none", None, 2), HeadVariant("affine", None, 2), HeadVariant("mlp", 20, 3)]
    table = evaluation.train_variants(model, letters(), corpus, variants, TRAINING, teacher, tested=2)
    assert table.depth.tolist() == [2, 4] * 3 and table.kind.tolist()[::2] == ["none", "affine", "mlp"]
    assert table.drafted.tolist()[::2] == ["all", "all", 20]
    assert table.tokens.tolist()[::2] == [0, 10 + 8, 10 + 8 + 6], "of the loss mask; the logit lens learns nothing"
    assert (table.training_seconds[2:] > table.training_seconds[:2].max()).all()
    assert table.own_parameters[0] == 0 < table.own_parameters[2] and table.columns[0] == "training_seconds"


def test_what_is_measured_is_what_heads_say_of_held_out_documents(setting):
    model, corpus, _ = setting
    heads = eelib.ExitHeads.init(model, (2, 4), "none")
    table = evaluation.measure_heads(model, heads, corpus, 3, tested=2).set_index("depth")
    backbone, agreed = eelib.Backbone.of(model), {2: [], 4: []}
    for text in corpus.test[:2]:
        own = model(text[None]).logits[0, 2:].argmax(-1)
        for depth, states in backbone.states(text[None], [2, 4]).items():
            agreed[depth] += (backbone.unembed(states[0, 2:]).argmax(-1) == own).tolist()
    assert len(agreed[2]) == 9 + 5
    for depth in (2, 4):
        row = table.loc[depth]
        assert row.agreement == pytest.approx(sum(agreed[depth]) / 14) and row.agreement_low <= row.agreement_high
    block = sum(p.numel() for p in backbone.blocks[0].parameters())
    assert table.cost_in_blocks[2] == pytest.approx(backbone.unembedding.weight.numel() / block)
    assert table.tokens.eq(10 + 8 + 6).all() and (table.loss > 0).all()


def test_nothing_to_test_on(setting):
    model, corpus, _ = setting
    with pytest.raises(InvalidInputError, match="tested=0 of 3 test documents"):
        evaluation.measure_heads(model, eelib.ExitHeads.init(model, (2,), "none"), corpus, 1, tested=0)
