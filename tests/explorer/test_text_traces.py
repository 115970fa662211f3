"""Traces of one text are those of `record_traces`, with the best tokens beside them."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import N_BLOCKS, letters, own_text, prompts, random_heads, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import eelib
from eelib.confidence import metrics
from eelib.confidence.traces import record_traces_of
from eelib.decoding.lossless import NEAR_TIE_ROUNDINGS
from eelib.errors import InvalidInputError
from eelib.explorer import trace_text
from eelib.explorer.text_traces import pieces_of, vocabulary_of


def heads_of(model, kind):
    if kind != "drafted part":
        return random_heads(model, scale=0.02, kind=kind)
    texts = [own_text(model, prompt, max_new_tokens=12)[0] for prompt in prompts(4)]
    heads = eelib.ExitHeads.init(model, (1, 3, 5), "mlp", 40, sequences=texts, tokenizer=letters())
    eelib.train_heads(model, heads, texts, eelib.TrainConfig(epochs=3, batch_size=1, learning_rate=1e-2))
    return heads


@pytest.mark.parametrize("kind", ["affine", "fused", "drafted part"])
def test_table_is_record_traces(llama, kind, monkeypatch):
    heads = heads_of(llama, kind)
    output = eelib.generate(llama, prompts(1)[0], policy=eelib.Never(), max_new_tokens=20, eos_token_id=None)
    text, begin = output.sequences[0], 7
    mask = torch.arange(len(text)) >= begin - 1
    mask[-1] = False
    drafts = (1, 2, 3) if kind == "fused" else (1,)
    each = record_traces_of(llama, [(heads, draft) for draft in drafts], [text], loss_mask=[mask])
    expected = pd.concat([one.assign(draft=draft) for one, draft in zip(each, drafts, strict=True)], ignore_index=True)
    found = trace_text(llama, letters(), output, heads).table()
    assert found.attrs == {"heads_fingerprint": heads.fingerprint()}
    pd.testing.assert_frame_equal(found[expected.columns], expected, check_dtype=False, rtol=1e-5)
    if kind == "drafted part":
        assert (found.head_token < 0).any()


def test_best_tokens_and_divergence_are_the_heads_own(llama):
    heads = heads_of(llama, "drafted part")
    output = eelib.generate(llama, prompts(1)[0], policy=eelib.Never(), max_new_tokens=12, eos_token_id=None)
    traces = trace_text(llama, letters(), output, heads)
    states = heads.backbone.states(output.sequences, [3, 6])
    token, exit_ = 5, 1
    row = traces.prompt_length - 1 + token
    p = heads.logits(3, states[3][:, row])[0].softmax(-1)
    full = heads.backbone.unembed(states[6][:, row])[0].softmax(-1)
    here = slice(traces.offsets[token], traces.offsets[token + 1])
    for id_, probability in zip(traces.best[here], traces.probabilities[here, exit_], strict=True):
        place = 40 if id_ < 0 else (heads.draft_tokens == id_).nonzero()
        own = float(p[place]) if id_ < 0 or len(place) else 0.0
        assert probability == pytest.approx(own, abs=1e-6)
    assert set(heads.draft_tokens[p[:-1].topk(4).indices].tolist()) <= set(traces.best[here].tolist())
    target = torch.cat([full[heads.draft_tokens], 1 - full[heads.draft_tokens].sum()[None]])
    kl = (target * (target / p).log()).sum()
    assert traces.kl[token, exit_] == pytest.approx(float(kl), abs=1e-5) and (traces.kl[:, -1] == 0).all()
    np.testing.assert_allclose(traces.scores["max_prob"][0, token, 1], float(p.max()), rtol=1e-5)


def test_the_logit_lens_is_read_where_the_output_left(llama):
    output = eelib.generate(llama, prompts(1)[0], policy=eelib.FixedExit(2, 3), max_new_tokens=8)
    traces = trace_text(llama, letters(), output)
    assert traces.depths == (2,) and traces.heads_fingerprint is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_near_ties_are_the_texts_own(dtype):
    """Decoding and one pass over the text may round them differently; a sampled token is another matter."""
    model = tiny_model("llama", seed=5).to(dtype)
    options = {"do_sample": True, "top_k": 2, "temperature": 50.0, "max_new_tokens": 60, "eos_token_id": None}
    torch.manual_seed(0)
    output = eelib.generate(model, prompts(1)[0], policy=eelib.Never(), **options)
    traces = trace_text(model, letters(), output, random_heads(model))
    own = output.sequences[0, traces.prompt_length :]
    backbone = eelib.Backbone.of(model)
    states = backbone.states(output.sequences, [N_BLOCKS])[N_BLOCKS][0, traces.prompt_length - 1 : -1]
    logits = backbone.unembed(states)
    gap = (logits.max(-1).values - logits[range(len(own)), own]).double()
    close = gap <= NEAR_TIE_ROUNDINGS * torch.finfo(dtype).eps * logits.max(-1).values.double().abs()
    assert traces.teacher.tolist() == torch.where(close, own, logits.argmax(-1)).tolist()
    assert (~close).sum() > 10 and (close & (gap > 0)).any() == (dtype is torch.bfloat16)


def test_scores_that_are_not_numbers_are_refused(llama, monkeypatch):
    monkeypatch.setattr(metrics, "_KNOWN", dict(metrics._KNOWN))
    eelib.register_metric("broken", lambda logits: logits.sum(-1) * float("nan"))
    output = eelib.generate(llama, prompts(1)[0], policy=eelib.Never(), max_new_tokens=4)
    with pytest.raises(InvalidInputError, match="broken of new token 0 at depth 1 is not a number"):
        trace_text(llama, letters(), output, random_heads(llama))


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, as byte-level vocabularies end up with for what they have not seen."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("text", ["a🙂b", "שלום!", "한\n<b>", "é", "👩‍👩‍👧"])
def test_pieces_are_the_text_whatever_its_script(text):
    tokenizer = bytes_tokenizer()
    ids = tokenizer(text).input_ids
    found = pieces_of(tokenizer, ids)
    assert "".join(found) == text and len(found) == len(ids) == len(text.encode())
    assert "\ufffd" not in "".join(found)


def test_bytes_that_never_become_a_character_are_kept_as_marks():
    tokenizer = bytes_tokenizer()
    ids = tokenizer("🙂").input_ids[:2] + tokenizer("abcd").input_ids
    found = pieces_of(tokenizer, ids)
    assert "".join(found).endswith("abcd") and "\ufffd" in "".join(found) and len(found) == len(ids)
    assert vocabulary_of(tokenizer, [ids[0], ids[-1], -1], ids[-1])[ids[-1]] == "d"
