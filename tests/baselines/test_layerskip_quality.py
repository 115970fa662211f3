import copy

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import letters, prompts, random_heads
from torch.nn import functional as F

import eelib
from eelib import evaluation
from eelib.baselines import layerskip, layerskip_quality
from eelib.errors import InvalidInputError

LENGTH = {"max_new_tokens": 10, "eos_token_id": None}


@pytest.fixture(scope="module")
def text():
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(3, 97, (length,), generator=generator) for length in (12, 9)]
    return sequences, [torch.arange(len(s)) >= 2 for s in sequences]


@pytest.fixture(scope="module")
def tuned(llama):
    """A copy of the model with slightly other weights."""
    other, generator = copy.deepcopy(llama), torch.Generator().manual_seed(2)
    for weight in other.parameters():
        weight.data += 0.03 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return other


def test_losses_by_band_by_hand():
    report = pd.DataFrame([
        {"step": step, "depth": depth, "loss": depth + step / 10} for step in range(1, 11) for depth in (1, 3, 11, 12)
    ])  # fmt: skip
    table = layerskip_quality.loss_by_band(report, 12)
    assert table.index.tolist() == [2, 4, 11, 12] and table.columns.tolist() == ["first fifth", "last fifth"]
    assert table["first fifth"].tolist() == pytest.approx([depth + 0.15 for depth in (1, 3, 11, 12)])
    assert table["last fifth"].tolist() == pytest.approx([depth + 0.95 for depth in (1, 3, 11, 12)])


def test_heads_are_read_as_exits_are(llama, text):
    """A logit lens made of heads agrees where the model's own norm and unembedding do."""
    sequences, loss_mask = text
    lens = eelib.ExitHeads.init(llama, (2, 4), "none")
    found = layerskip_quality.read_heads(llama, lens, sequences, loss_mask=loss_mask)
    expected = layerskip.read_exits(llama, sequences, loss_mask=loss_mask, depths=(2, 4))
    columns = ["sequence", "depth", "tokens", "agreed"]
    pd.testing.assert_frame_equal(found[columns], expected[columns], check_dtype=False)
    assert found.nats.isna().all() and found.tokens.tolist() == [9, 9, 6, 6], "the last has nothing that follows"


def test_quality_of_exits_by_hand():
    rows = [(0, 2, 4, 1, 8.0), (0, 6, 4, 4, 4.0), (1, 2, 6, 4, 2.0), (1, 6, 6, 6, 1.0)]
    lens = pd.DataFrame(rows, columns=["sequence", "depth", "tokens", "agreed", "nats"])
    heads = lens[lens.depth == 2].assign(nats=np.nan)
    table = layerskip_quality.exit_quality({"original": lens, "our heads": heads})
    assert table.exits.tolist() == ["original", "original", "our heads"] and table.depth.tolist() == [2, 6, 2]
    assert table.agreement.tolist() == pytest.approx([0.5, 1, 0.5])
    assert table.perplexity.tolist()[:2] == pytest.approx([np.e, np.exp(0.5)]) and np.isnan(table.perplexity[2])
    assert table.agreement_low[0] == pytest.approx(1 / 4) and table.agreement_high[0] == pytest.approx(4 / 6)


def test_perplexity_over_the_references(llama, tuned, text):
    sequences, loss_mask = text
    models, kinds = {"original": llama, "tuned": tuned}, {"own": (sequences, loss_mask), "prose": (sequences[:1], None)}
    table = layerskip_quality.compare_perplexity(models, kinds).set_index(["text", "model"])
    nats = {
        name: [
            F.cross_entropy(model(text[None]).logits[0, 2:-1].float(), text[3:], reduction="none") for text in sequences
        ]
        for name, model in models.items()
    }
    for name, found in nats.items():
        assert table.perplexity["own", name] == pytest.approx(torch.cat(found).mean().exp().item(), rel=1e-5)
    more = (torch.cat(nats["tuned"]) - torch.cat(nats["original"])).mean().exp().item()
    assert table.ratio["own", "tuned"] == pytest.approx(more, rel=1e-5) and abs(more - 1) > 1e-3
    assert table.ratio_low["own", "tuned"] <= more <= table.ratio_high["own", "tuned"]
    assert table.loc[("prose", "original"), ["ratio", "ratio_low", "ratio_high"]].tolist() == [1, 1, 1]
    with pytest.raises(InvalidInputError, match="No model 'original'"):
        layerskip_quality.compare_perplexity({"tuned": tuned}, kinds)


def test_answers_that_part(llama, tuned):
    own, theirs = (evaluation.OwnTexts.write(model, prompts(4), **LENGTH) for model in (llama, tuned))
    table = layerskip_quality.compare_answers(llama, tuned, own, theirs)
    assert table.tokens.tolist() == [10] * 4 and 0 < table.different.sum() < 40
    for row, text, other in zip(table.itertuples(), own.sequences, theirs.sequences, strict=True):
        choices = [tuned(text[None, :at]).logits[0, -1].argmax().item() for at in range(7, 17)]
        assert row.different == sum(a != b for a, b in zip(choices, text[7:].tolist(), strict=True))
        assert row.equal == torch.equal(text, other)
        assert row.first_mismatch == (-1 if row.equal else (text != other).nonzero()[0].item() - 7)
    same = layerskip_quality.compare_answers(llama, llama, own, own)
    assert same.different.eq(0).all() and same.equal.all()


def test_a_grid_counts_what_decoding_does(llama):
    heads, asked = random_heads(llama), prompts(3)
    texts = evaluation.OwnTexts.write(llama, asked, **LENGTH)
    table = layerskip_quality.fixed_exit_grid(llama, heads, [1, 3], texts)
    assert table[["depth", "draft_length"]].to_numpy().tolist() == [[d, n] for d in heads.depths for n in (1, 3)]
    assert not {"policy", "work"} & set(table)
    reads = evaluation.WeightReads.of(llama, heads)
    for row in table.itertuples():
        policy = eelib.FixedExit(row.depth, row.draft_length)
        stats = [eelib.generate(llama, p, heads=heads, policy=policy, **LENGTH).stats for p in asked]
        assert (row.drafted, row.accepted) == (sum(s.drafted for s in stats), sum(s.accepted for s in stats))
        assert row.tokens_per_pass == pytest.approx(30 / sum(reads.passes_of_run(s) for s in stats))


def test_accuracy_beside_the_original(llama, monkeypatch):
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    table = layerskip_quality.compare_accuracy({"original": llama, "tuned": llama}, letters(), 2)
    intervals = [f"{value}{end}" for value in ("accuracy", "difference") for end in ("", "_low", "_high")]
    assert table.columns.tolist() == ["task", "model", "cases", *intervals, "changed"]
    assert table.model.tolist() == ["original", "tuned"] * 2 and table.cases.eq(2).all()
    assert table.difference.eq(0).all() and table.changed.eq(0).all()
