import pytest
from tiny import DEPTHS, after, letters, prompts, random_heads

import eelib
from eelib.errors import CorpusError


@pytest.fixture(scope="module")
def texts(llama):
    return [
        llama.generate(p, do_sample=False, max_new_tokens=30 + 3 * i, eos_token_id=None)[0]
        for i, p in enumerate(prompts(5))
    ]


def test_traces_say_what_heads_and_model_say(llama, texts):
    heads = random_heads(llama)
    traces = eelib.record_traces(llama, heads, texts, batch_size=2)
    assert len(traces) == 3 * sum(map(len, texts))
    states = eelib.Backbone.of(llama).states(texts[3][None], list(DEPTHS))
    row = traces.query("sequence == 3 and position == 11 and depth == 5").iloc[0]
    logits = heads.logits(5, states[5][0, 11])
    assert row.head_token == logits.argmax().item() and row["head"] == 2
    assert row.teacher_token == llama(texts[3][None]).logits[0, 11].argmax().item()
    assert row.agrees == (row.head_token == row.teacher_token)
    for metric, score in eelib.confidence.metrics.confidence(logits[None]).items():
        assert row[metric] == pytest.approx(score.item(), rel=1e-5)


def test_the_second_draft_of_fused_heads_reads_their_first_guess(llama, texts):
    heads, backbone = random_heads(llama, kind="fused", scale=0.05), eelib.Backbone.of(llama)
    states = backbone.states(texts[3][None], [1, 6])
    final = backbone.normalise(states[6][0])
    guess = heads.final(1, states[1][0, 10], final[9])
    for draft, previous in ((1, final[10]), (2, guess)):
        traces = eelib.record_traces(llama, heads, texts, draft=draft)
        row = traces.query("sequence == 3 and position == 11 and depth == 1").iloc[0]
        logits = heads.logits(1, states[1][0, 11], previous)
        assert row.head_token == logits.argmax().item() and row.max_logit == pytest.approx(
            logits.max().item(), rel=1e-4
        )


def test_the_prompt_can_be_left_out(llama, texts):
    traces = eelib.record_traces(llama, random_heads(llama), texts, loss_mask=after(6, texts))
    assert traces.position.min() == 6 and len(traces) == 3 * sum(len(t) - 6 for t in texts)
    with pytest.raises(CorpusError):
        eelib.record_traces(llama, random_heads(llama), [])


def test_a_head_whose_other_leads_declines(llama, texts):
    heads = eelib.ExitHeads.init(llama, [2], "mlp", 20, sequences=texts, tokenizer=letters()).to(llama.dtype)
    heads.others["2"].bias.data.fill_(1e3)
    traces = eelib.record_traces(llama, heads, texts)
    assert (traces.head_token == -1).all() and not traces.agrees.any() and (traces.entropy == float("-inf")).all()
    cal = eelib.calibrate(traces, "entropy", 0.5)
    assert cal.thresholds == (None,)
