import pytest
from tiny import chatty, random_heads, tiny_model

import eelib
from eelib.calibration.cascade import HeadScores
from eelib.corpus.chat import answers, as_prompt
from eelib.errors import InvalidInputError
from eelib.evaluation.attacks import GOALS, search_prompts

QUESTIONS = ["how many", "what is", "tell me"]


@pytest.fixture(scope="module")
def asked():
    model, tokenizer = tiny_model("llama"), chatty()
    heads = random_heads(model, scale=0.02)
    sequences, spoken = answers(model, tokenizer, QUESTIONS, 12)
    traces = eelib.record_traces(model, heads, sequences, loss_mask=spoken)
    return model, tokenizer, heads, eelib.calibrate(traces, "entropy", 0.5, target="output_agreement")


@pytest.mark.parametrize("goal", GOALS)
def test_a_search_finds_worse_than_it_began_with_and_tells_the_truth_about_it(asked, goal):
    model, tokenizer, heads, calibration = asked
    found = search_prompts(model, heads, tokenizer, calibration, QUESTIONS, goal, suffix=4, rounds=3, max_new_tokens=12)
    began = found[found["round"] == 0]
    assert set(began.text) == set(QUESTIONS)
    best, reached = found.iloc[0], found.wrong if goal == "wrong exits" else -found.coverage
    assert reached[0] == reached.max() > reached[began.index].mean() and len(found) > 3 * len(began)
    sequences, spoken = answers(model, tokenizer, [best.text], 12)
    tokens = HeadScores.of(eelib.record_traces(model, heads, sequences, loss_mask=spoken), "entropy")
    exits = tokens.exits(calibration.thresholds)
    assert best.coverage == pytest.approx(exits.any(axis=1).mean())
    assert best.wrong == pytest.approx((exits & ~tokens.agrees).any(axis=1).mean())


def test_a_search_for_nothing(asked):
    model, tokenizer, heads, calibration = asked
    for questions, goal in ((QUESTIONS, "harm"), ([], GOALS[0])):
        with pytest.raises(InvalidInputError, match="wrong exits or no exits"):
            search_prompts(model, heads, tokenizer, calibration, questions, goal)


def test_answers_are_what_the_model_says_to_each_alone(asked):
    model, tokenizer, *_ = asked
    sequences, spoken = answers(model, tokenizer, QUESTIONS, 12, batch_size=2)
    for text, sequence, counts in zip(QUESTIONS, sequences, spoken, strict=True):
        prompt = as_prompt(text, tokenizer)
        alone = model.generate(prompt, do_sample=False, max_new_tokens=12, pad_token_id=0, attention_mask=prompt >= 0)[
            0
        ]
        assert sequence.tolist() == alone.tolist()
        assert counts.tolist() == [prompt.shape[1] - 1 <= i < len(sequence) - 1 for i in range(len(sequence))]
