"""Lossless means lossless: in float64 the output is the model's own, whatever the thresholds, drafts and stops."""

import pytest
import torch
from conftest import N_BLOCKS, VOCAB_SIZE, prompts, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.streamers import BaseStreamer

import eelib
from eelib import decoding, lossless
from eelib.backbone import Backbone
from eelib.errors import HeadsError, InvalidInputError, UnsupportedError

DEPTHS = (1, 3, 5)


def scripted(monkeypatch, model, prompt, wrong_at, draft_length, new=12, **kwargs):
    """Decodes with heads that draft the model's own text, save at the positions `wrong_at` of the new tokens."""
    own = own_text(model, prompt, max_new_tokens=new, **kwargs)
    truth, wrong = own[0].tolist(), [prompt.shape[1] + i for i in wrong_at]

    def head_token(session, logits, prefix):
        position = prefix.shape[1]
        token = truth[position] if position < len(truth) else 0
        return (token + 1) % VOCAB_SIZE if position in wrong else token

    monkeypatch.setattr(decoding._Session, "_head_token", head_token)
    return own, eelib.generate(model, prompt, policy=eelib.FixedExit(3, draft_length), max_new_tokens=new, **kwargs)


def own_text(model, prompt, **kwargs):
    return model.generate(prompt, do_sample=False, **kwargs)


def random_heads(model, seed=0, scale=0.3):
    """Heads whose maps are random, so that they agree sometimes and disagree strongly at other times."""
    heads = eelib.ExitHeads.init(model, DEPTHS, "affine", seed=seed).to(model.dtype)
    generator = torch.Generator().manual_seed(seed)
    for parameter in heads.parameters():
        parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return heads.requires_grad_(False)


POLICIES = [
    eelib.Never(),
    eelib.FixedExit(1, 1),
    eelib.FixedExit(3, 4),
    eelib.FixedExit(5, 20),
    eelib.Confidence("max_prob", (0.3, 0.3, 0.3), max_draft=5),
    eelib.Confidence("entropy", (-2.0, -1.5, -1.0)),
    eelib.Confidence("margin_logit", (None, 0.5, None)),
    eelib.Confidence("max_logit", (-1e9, -1e9, -1e9), max_draft=3),
    eelib.Confidence("max_prob", (None, None, None)),
]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_output_is_the_models_own_and_no_block_works_twice(model, policy):
    heads = random_heads(model)
    for prompt in prompts(4):
        out = eelib.generate(model, prompt, heads=heads, policy=policy, max_new_tokens=40)
        assert torch.equal(out.sequences, own_text(model, prompt, max_new_tokens=40))
        stats, trace = out.stats, out.trace
        new = out.sequences.shape[1] - prompt.shape[1]
        assert stats.emitted == new == (trace.accepted | ~trace.drafted).sum()
        assert stats.drafted == trace.drafted.sum() and stats.accepted == trace.accepted.sum()
        rejected = stats.drafted - stats.accepted
        least = prompt.shape[1] + new - 1 + rejected
        # a rejected draft that would have ended the text was never fed
        unfed = (
            trace.drafted & ~trace.accepted & ((trace.token_id == 2) | (trace.position >= prompt.shape[1] + 39))
        ).sum()
        assert stats.block_positions == (least - unfed,) * N_BLOCKS


def test_logit_lens_drafts_need_no_heads(model):
    for depth, length in ((2, 3), (5, 6)):
        out = eelib.generate(model, prompts(1)[0], policy=eelib.FixedExit(depth, length), max_new_tokens=30)
        assert torch.equal(out.sequences, own_text(model, prompts(1)[0], max_new_tokens=30))
        assert out.stats.drafted > 0 and set(out.trace.depth) <= {depth, N_BLOCKS}


@settings(max_examples=40, deadline=None)
@given(
    thresholds=st.tuples(*[st.none() | st.floats(0, 1)] * 3),
    max_draft=st.integers(1, 9),
    new=st.integers(1, 25),
    end=st.integers(3, VOCAB_SIZE - 1),
    prompt_seed=st.integers(0, 5),
    length=st.integers(1, 9),
)
def test_any_thresholds_drafts_and_stops(thresholds, max_draft, new, end, prompt_seed, length):
    model = _LLAMA
    prompt = prompts(1, length, prompt_seed)[0]
    policy = eelib.Confidence("max_prob", thresholds, max_draft)
    kwargs = {"max_new_tokens": new, "eos_token_id": end}
    out = eelib.generate(model, prompt, heads=_HEADS, policy=policy, **kwargs)
    assert torch.equal(out.sequences, own_text(model, prompt, **kwargs))


_LLAMA = tiny_model("llama")
_HEADS = random_heads(_LLAMA, seed=3)


@pytest.mark.parametrize(
    ("wrong_at", "draft_length", "accepted_in_rounds"),
    [  # 12 tokens: one from prefill, then each round emits its accepted drafts and one of the model's own
        ((), 3, [[1, 1, 1], [1, 1, 1], [1, 1, 1]]),  # the third round's last draft is the twelfth token: no bonus
        (range(12), 2, [[0, 0]] * 10 + [[0]]),  # never accepted: one token a round
        ((2,), 4, [[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]),  # rejected in the middle
        ((1,), 4, [[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]),  # rejected first
        ((4,), 4, [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1]]),  # rejected last
        ((3, 5), 2, [[1, 1], [1, 0], [1, 1], [1, 1]]),  # where only the model speaks a wrong draft is never made
    ],
)
def test_hand_written_acceptance(monkeypatch, model, wrong_at, draft_length, accepted_in_rounds):
    own, out = scripted(monkeypatch, model, prompts(1)[0], wrong_at, draft_length, eos_token_id=None)
    assert torch.equal(out.sequences, own)
    drafts = out.trace[out.trace.drafted]
    assert [list(map(int, rows.accepted)) for _, rows in drafts.groupby("round")] == accepted_in_rounds


def test_the_end_inside_a_draft_stops_the_text(monkeypatch, model):
    prompt = prompts(1)[0]
    own = own_text(model, prompt, max_new_tokens=12, eos_token_id=None)
    for i in range(12):
        end = own[0, prompt.shape[1] + i].item()
        expected, out = scripted(monkeypatch, model, prompt, (), 5, eos_token_id=end)
        assert torch.equal(out.sequences, expected)
        fed = prompt.shape[1] + out.stats.emitted - 1
        assert set(out.stats.block_positions) == {fed}


def test_logits_processors_see_the_right_prefix(model):
    heads = random_heads(model)
    for policy in POLICIES[2:6]:
        kwargs = {"max_new_tokens": 30, "repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "min_new_tokens": 5}
        out = eelib.generate(model, prompts(1)[0], heads=heads, policy=policy, **kwargs)
        assert torch.equal(out.sequences, own_text(model, prompts(1)[0], **kwargs))


def test_early_exit_leaves_exact_states(model):
    """Whatever exits on the way, the last full pass equals a teacher-forced pass over the emitted text."""
    heads = random_heads(model)
    policy = eelib.Confidence("max_prob", (0.25, 0.35, 0.35))
    out = eelib.generate(model, prompts(1)[0], heads=heads, policy=policy, verify=False, max_new_tokens=40)
    assert {N_BLOCKS} < set(out.trace.depth), "this case must both exit and go through"
    logits = model(out.sequences).logits[0]
    states = Backbone.of(model).states(out.sequences, list(DEPTHS))
    for row in out.trace.itertuples():
        if row.depth == N_BLOCKS:
            expected = logits[row.position - 1].float().argmax().item()
        else:
            expected = heads.tokens(heads.logits(row.depth, states[row.depth][0, row.position - 1])).item()
        assert row.token_id == expected
    assert out.stats.drafted == out.stats.rounds == 0


def test_the_hugging_face_way(model):
    heads, prompt = random_heads(model), prompts(1)[0]
    kwargs = {"custom_generate": eelib.custom_generate, "heads": heads, "policy": eelib.FixedExit(3, 4)}
    own = own_text(model, prompt, max_new_tokens=20)
    assert torch.equal(model.generate(prompt, max_new_tokens=20, **kwargs), own)
    full = model.generate(prompt, max_new_tokens=20, return_dict_in_generate=True, **kwargs)
    assert torch.equal(full.sequences, own) and full.stats.drafted > 0


def test_streamer_gets_final_tokens_only(model):
    class Streamer(BaseStreamer):
        tokens, ended = [], 0

        def put(self, value):
            self.tokens.append(value.flatten().tolist())

        def end(self):
            self.ended += 1

    streamer, prompt = Streamer(), prompts(1)[0]
    out = eelib.generate(
        model, prompt, heads=random_heads(model), policy=POLICIES[2], streamer=streamer, max_new_tokens=15
    )
    assert sum(streamer.tokens, []) == out.sequences[0].tolist() and streamer.ended == 1


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"do_sample": True}, "do_sample"),
        ({"num_beams": 2}, "num_beams"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1, 1]])}, "attention_mask"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(llama, kwargs, said):
    with pytest.raises(UnsupportedError, match=said):
        eelib.generate(llama, prompts(1)[0], policy=eelib.Never(), max_new_tokens=3, **kwargs)


def test_batches_are_refused(llama):
    with pytest.raises(UnsupportedError, match=r"\[2, 7\]"):
        eelib.generate(llama, torch.cat(prompts(2)), policy=eelib.Never(), max_new_tokens=3)


def test_heads_that_do_not_fit_are_refused(llama):
    heads = random_heads(llama)
    with pytest.raises(HeadsError, match="depths"):
        eelib.generate(llama, prompts(1)[0], heads=heads, policy=eelib.FixedExit(2, 2), max_new_tokens=3)
    with pytest.raises(HeadsError, match="2 thresholds for 3 heads"):
        eelib.generate(llama, prompts(1)[0], heads=heads, policy=eelib.Confidence("margin", (0.1, 0.2)))
    with pytest.raises(HeadsError, match="another model"):
        other = tiny_model("llama", seed=1)
        eelib.generate(other, prompts(1)[0], heads=heads, policy=POLICIES[2], max_new_tokens=3)


@pytest.mark.parametrize("arguments", [(0, 2), (2, 0), (True, 2)])
def test_fixed_exit_checks_its_numbers(arguments):
    with pytest.raises(InvalidInputError):
        eelib.FixedExit(*arguments)


def test_an_error_midway_leaves_the_model_usable(model):
    class Broken(BaseStreamer):
        count = 0

        def put(self, value):
            self.count += 1
            if self.count == 5:
                raise KeyboardInterrupt

        def end(self):
            pass

    prompt = prompts(1)[0]
    before = own_text(model, prompt, max_new_tokens=10)
    with pytest.raises(KeyboardInterrupt):
        eelib.generate(model, prompt, heads=random_heads(model), policy=POLICIES[2], streamer=Broken())
    assert torch.equal(own_text(model, prompt, max_new_tokens=10), before)


def test_verify_lossless_shows_a_near_tie_and_a_real_difference(llama, monkeypatch):
    table = eelib.verify_lossless(llama, random_heads(llama), POLICIES[3], prompts(3), max_new_tokens=10)
    assert table.equal.all() and (table.first_difference == -1).all()

    def wrong(model, prompt, **kwargs):
        out = eelib.generate(model, prompt, **kwargs)
        out.sequences[0, -1] = (out.sequences[0, -1] + 1) % VOCAB_SIZE
        return out

    monkeypatch.setattr(lossless, "generate", wrong)
    table = eelib.verify_lossless(llama, random_heads(llama), POLICIES[3], prompts(3), max_new_tokens=10)
    assert not table.equal.any() and (table.first_difference == 9).all() and not table.near_tie.any()
