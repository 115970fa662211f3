"""Lossless means lossless: in float64 the output is the model's own, whatever the thresholds, drafts and stops."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import N_BLOCKS, VOCAB_SIZE, own_text, prompts, random_heads, tiny_model

import eelib
from eelib.backbone.segments import Backbone
from eelib.decoding import session
from eelib.errors import HeadsError

DEPTHS = (1, 3, 5)


def scripted(monkeypatch, model, prompt, wrong_at, draft_length, new=12, **kwargs):
    """Decodes with heads that draft the model's own text, save at the positions `wrong_at` of the new tokens."""
    own = own_text(model, prompt, max_new_tokens=new, **kwargs)
    truth, wrong = own[0].tolist(), [prompt.shape[1] + i for i in wrong_at]

    draft_of = session.Session.draft

    def draft(session, prefix):
        position = prefix.shape[1]
        token = truth[position] if position < len(truth) else 0
        return replace(draft_of(session, prefix), token=(token + (position in wrong)) % VOCAB_SIZE)

    monkeypatch.setattr(session.Session, "draft", draft)
    return own, eelib.generate(model, prompt, policy=eelib.FixedExit(3, draft_length), max_new_tokens=new, **kwargs)


POLICIES = [
    eelib.Never(),
    eelib.FixedExit(1, 1),
    eelib.FixedExit(3, 4),
    eelib.FixedExit(5, 20),
    eelib.baselines.SkipDecode(6, 2, 30),
    eelib.Confidence("max_prob", (0.3, 0.3, 0.3), max_draft=5),
    eelib.Confidence("entropy", (-2.0, -1.5, -1.0), back_off=False),
    eelib.Confidence("margin_logit", (None, 0.5, None)),
    eelib.Confidence("max_logit", (-1e9, -1e9, -1e9), max_draft=3, back_off=False),
    eelib.Confidence("max_prob", (None, None, None)),
]


@pytest.fixture(scope="module")
def own_texts(model):
    return [(prompt, own_text(model, prompt, max_new_tokens=40)) for prompt in prompts(3)]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_output_is_the_models_own_and_no_block_works_twice(model, own_texts, policy):
    heads = random_heads(model)
    for prompt, own in own_texts:
        out = eelib.generate(model, prompt, heads=heads, policy=policy, max_new_tokens=40)
        assert torch.equal(out.sequences, own)
        stats, trace = out.stats, out.trace
        new = out.sequences.shape[1] - prompt.shape[1]
        assert stats.emitted == new == (trace.accepted | ~trace.drafted).sum()
        assert stats.drafted == trace.drafted.sum() and stats.accepted == trace.accepted.sum()
        rejected = stats.drafted - stats.accepted
        least = prompt.shape[1] + new - 1 + rejected
        ends = (trace.token_id == 2) | (trace.position >= prompt.shape[1] + 39)
        assert trace.ends.equals(ends) and trace.asked.sum() == sum(stats.head_positions.values())
        unfed = (trace.ends & trace.drafted & ~trace.accepted).sum()  # nothing could have followed
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
    back_off=st.booleans(),
)
def test_any_thresholds_drafts_and_stops(thresholds, max_draft, new, end, prompt_seed, length, back_off):
    model = _LLAMA
    prompt = prompts(1, length, prompt_seed)[0]
    policy = eelib.Confidence("max_prob", thresholds, max_draft, back_off=back_off)
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


def test_less_work_than_transformers_own_self_speculation(llama):
    """Its drafts leave no keys and values behind: most tokens pass the early blocks again and again."""
    prompt, passed = prompts(1, 6)[0], 0

    def count(block, args):
        nonlocal passed
        passed += args[0].shape[1]

    handle = llama.model.layers[0].register_forward_pre_hook(count)
    try:
        own = own_text(llama, prompt, max_new_tokens=30, eos_token_id=None)
        assert passed == 35
        passed = 0
        llama.generate(prompt, do_sample=False, max_new_tokens=30, eos_token_id=None, assistant_early_exit=3)
    finally:
        handle.remove()
    out = eelib.generate(llama, prompt, policy=eelib.FixedExit(3, 5), max_new_tokens=30, eos_token_id=None)
    rejected = out.stats.drafted - out.stats.accepted
    assert torch.equal(out.sequences, own)
    assert out.stats.block_positions[0] <= 35 + rejected < 2 * passed
    perfect = eelib.generate(
        llama, prompt, policy=eelib.Confidence("max_prob", (1.5,) * 5), max_new_tokens=30, eos_token_id=None
    )
    assert perfect.stats.block_positions == (35,) * N_BLOCKS < (passed,) * N_BLOCKS


def test_a_draft_vocabulary_that_lacks_the_right_token(model):
    """The head cannot say what the model says; the text is the model's own all the same."""
    own = own_text(model, prompts(1)[0], max_new_tokens=30, eos_token_id=None)
    tokens = torch.tensor([t for t in range(VOCAB_SIZE) if t not in own[0, 10:20].tolist()][:40])
    heads = eelib.ExitHeads(eelib.HeadConfig((2, 4), "affine", len(tokens)), model, tokens).to(torch.float64)
    for depth in heads.depths:
        heads.maps[str(depth)].map.weight.data.normal_(0, 0.3)
    for policy in (eelib.FixedExit(2, 3), eelib.Confidence("max_prob", (0.1, 0.1), back_off=False)):
        out = eelib.generate(model, prompts(1)[0], heads=heads, policy=policy, max_new_tokens=30, eos_token_id=None)
        assert torch.equal(out.sequences, own)
        drafts = out.trace[out.trace.drafted]
        assert len(drafts) and set(drafts.token_id) <= set(tokens.tolist())


def test_eager_and_sdpa_attention_agree():
    texts = []
    for attention in ("eager", "sdpa"):
        model = tiny_model("llama", attn_implementation=attention)
        assert model.config._attn_implementation == attention
        for policy in POLICIES[2:6]:
            out = eelib.generate(model, prompts(1)[0], heads=random_heads(model), policy=policy, max_new_tokens=30)
            texts.append(out.sequences[0].tolist())
    assert all(text == texts[0] for text in texts)


def test_logits_processors_see_the_right_prefix(model):
    heads = random_heads(model)
    kwargs = {"max_new_tokens": 30, "repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "min_new_tokens": 5}
    own = own_text(model, prompts(1)[0], **kwargs)
    for policy in POLICIES[2:7]:
        out = eelib.generate(model, prompts(1)[0], heads=heads, policy=policy, **kwargs)
        assert torch.equal(out.sequences, own)


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
            expected = heads.drafted_tokens(heads.logits(row.depth, states[row.depth][0, row.position - 1])).item()
        assert row.token_id == expected
    assert out.stats.drafted == out.stats.rounds == 0


def test_heads_that_do_not_fit_are_refused(llama):
    heads = random_heads(llama)
    with pytest.raises(HeadsError, match="depths"):
        eelib.generate(llama, prompts(1)[0], heads=heads, policy=eelib.FixedExit(2, 2), max_new_tokens=3)
    with pytest.raises(HeadsError, match="2 thresholds for 3 heads"):
        eelib.generate(llama, prompts(1)[0], heads=heads, policy=eelib.Confidence("margin", (0.1, 0.2)))
    with pytest.raises(HeadsError, match="another model"):
        other = tiny_model("llama", seed=1)
        eelib.generate(other, prompts(1)[0], heads=heads, policy=POLICIES[2], max_new_tokens=3)
