import pandas as pd
import pytest
from conftest import after, letters, prompts
from test_decoding import DEPTHS, random_heads

import eelib
from eelib.cost import costs, decoding_cost
from eelib.errors import CorpusError, InvalidInputError
from eelib.planning import fixed_exit_grid, fixed_exit_rounds, on_front


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
    for metric, score in eelib.confidence.confidence(logits[None]).items():
        assert row[metric] == pytest.approx(score.item(), rel=1e-5)


def test_the_prompt_can_be_left_out(llama, texts):
    traces = eelib.record_traces(llama, random_heads(llama), texts, counted=after(6, texts))
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


@pytest.mark.parametrize("draft_length", [1, 2, 4, 7])
@pytest.mark.parametrize("with_heads", [True, False])
def test_rounds_from_traces_are_what_decoding_does(llama, with_heads, draft_length):
    heads = random_heads(llama) if with_heads else eelib.ExitHeads.init(llama, DEPTHS, "none")
    kwargs = {"max_new_tokens": 40, "eos_token_id": None}
    texts = [llama.generate(p, do_sample=False, **kwargs)[0] for p in prompts(4)]
    traces = eelib.record_traces(llama, heads, texts, counted=after(6, texts))
    traces = traces[traces.position < traces.groupby("sequence").position.transform("max")]
    grid = fixed_exit_grid(traces, costs(llama, heads), 6, [draft_length]).set_index("depth")
    for depth in DEPTHS:
        policy = eelib.FixedExit(depth, draft_length)
        stats = [eelib.generate(llama, p, heads=heads, policy=policy, **kwargs).stats for p in prompts(4)]
        for name in ("emitted", "rounds", "drafted", "accepted"):
            assert grid.loc[depth, name] == sum(getattr(s, name) for s in stats)
        spent = sum(decoding_cost(costs(llama, heads), s) for s in stats)
        assert grid.loc[depth, "emitted"] / spent == pytest.approx(grid.loc[depth, "tokens_per_pass"], rel=0.1)


def test_rounds_by_hand():
    matches = pd.array([False, True, True, False, True, True, True]).to_numpy(dtype=bool)
    # entry 0 is prefill's; [1, 2] both right + the model's 3; [4, 5] both right + the model's 6
    assert fixed_exit_rounds(matches, 2) == {"emitted": 7, "rounds": 2, "drafted": 4, "accepted": 4}
    assert fixed_exit_rounds(matches, 3) == {"emitted": 7, "rounds": 2, "drafted": 6, "accepted": 5}
    assert fixed_exit_rounds(~matches, 2) == {"emitted": 7, "rounds": 5, "drafted": 9, "accepted": 1}
    with pytest.raises(InvalidInputError):
        fixed_exit_rounds(matches, 0)


def test_plain_decoding_costs_one_pass_a_token(llama):
    stats = eelib.generate(llama, prompts(1)[0], policy=eelib.Never(), max_new_tokens=12, eos_token_id=None).stats
    heads = random_heads(llama)
    assert decoding_cost(costs(llama, heads), stats) == pytest.approx(12)
    price = costs(llama, heads)
    assert price.block * 6 + price.unembedding == pytest.approx(1) and price.heads[1] > price.unembedding


def test_pareto_front():
    assert on_front([1, 2, 3, 2, 3], [1, 2, 3, 3, 4]) == [True, True, True, False, False]
    assert on_front([1, 1], [1, 1]) == [True, True]


def test_greedy_text_is_what_the_model_teaches(llama, texts):
    traces = eelib.record_traces(llama, random_heads(llama), texts, counted=after(6, texts))
    said = traces[traces["head"] == 0].groupby("sequence").teacher_token.apply(list)
    for i, text in enumerate(texts):
        assert said[i][:-1] == text[7:].tolist()
