"""Generation the Hugging Face way: what is given reaches the engine, or is refused by name."""

import pytest
import torch
from tiny import letters, own_text, prompts, random_heads, tiny_model
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicCache
from transformers.generation.streamers import BaseStreamer

import eelib
from eelib.backbone.kv_cache import cache_argument
from eelib.errors import EelibError, InvalidInputError, UnsupportedError

POLICY = eelib.Confidence("max_prob", (0.3, 0.3, 0.3), back_off=False)


def both(model, prompt, **kwargs):
    out = eelib.generate(model, prompt, heads=random_heads(model), policy=POLICY, **kwargs)
    return out.sequences, own_text(model, prompt, **{k: v for k, v in kwargs.items() if k != "streamer"})


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
        ({"output_logits": True, "return_dict_in_generate": True}, "output_logits"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"assistant_early_exit": 3}, "assistant_early_exit"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 0]])}, "Pad on the left"),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1, 1]]), "exact": True}, "masked tokens"),
        ({"position_ids": torch.arange(7)[None] + 3}, "position_ids"),
        ({"inputs_embeds": torch.zeros(1, 7, 32)}, "inputs_embeds"),
        ({"assistant_model": "a model"}, "assistant_model"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_is_not_supported_is_refused_by_name(llama, kwargs, said):
    with pytest.raises(UnsupportedError, match=said):
        eelib.generate(llama, prompts(1)[0], policy=eelib.Never(), max_new_tokens=3, **kwargs)


def test_batches_are_refused_where_transformers_prepares_them(llama):
    with pytest.raises(UnsupportedError, match=r"\[2, 7\].*eelib.generate"):
        llama.generate(
            torch.cat(prompts(2)), custom_generate=eelib.custom_generate, policy=eelib.Never(), max_new_tokens=3
        )


def test_a_filled_cache_is_refused_and_an_empty_one_is_not(llama):
    given = {cache_argument(llama): DynamicCache()}
    eelib.generate(llama, prompts(1)[0], policy=eelib.Never(), max_new_tokens=3, **given)
    llama(prompts(1)[0][:, :4], **given)
    with pytest.raises(UnsupportedError, match="A filled "):
        eelib.generate(llama, prompts(1)[0], policy=eelib.Never(), max_new_tokens=3, **given)


def test_generation_configs_lengths_and_ends(model):
    prompt = prompts(1)[0]
    own = own_text(model, prompt, max_new_tokens=30, eos_token_id=None)[0].tolist()
    for kwargs in (
        {"max_length": 20},
        {"max_new_tokens": 1},
        {"max_new_tokens": 12, "min_new_tokens": 9, "eos_token_id": [own[8], own[10]]},
        {"max_new_tokens": 30, "eos_token_id": [own[12], own[20]]},
        {"generation_config": GenerationConfig(max_new_tokens=17, eos_token_id=own[-1], pad_token_id=0)},
        {"max_new_tokens": 20, "repetition_penalty": 1.4, "bad_words_ids": [[own[9]]]},
    ):
        ours, expected = both(model, prompt, **kwargs)
        assert torch.equal(ours, expected)


def test_masked_tokens_anywhere_are_not_there(model):
    """Also those that transformers masks by itself: padding tokens in the middle of a prompt."""
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 1]])
    ours, expected = both(model, prompts(1)[0], attention_mask=mask, max_new_tokens=20)
    assert torch.equal(ours, expected)
    prompt = torch.tensor([[5, 9, 0, 44, 0, 17]])
    ours, expected = both(model, prompt, max_new_tokens=20)
    assert torch.equal(ours, expected)
    assert not torch.equal(ours, both(model, prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20)[0])


def test_masked_tokens_inside_a_prompt_are_refused_where_windows_count_them():
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 1]])
    with pytest.raises(UnsupportedError, match="sliding windows"):
        eelib.generate(
            tiny_model("mistral"), prompts(1)[0], policy=eelib.Never(), attention_mask=mask, max_new_tokens=3
        )


def test_no_new_tokens_is_what_transformers_makes_of_it(llama):
    answers = []
    for call in (
        lambda: eelib.generate(llama, prompts(1)[0], policy=eelib.Never(), max_new_tokens=0).sequences,
        lambda: own_text(llama, prompts(1)[0], max_new_tokens=0),
    ):
        try:
            answers.append(call().tolist())
        except ValueError as error:
            answers.append(str(error))
    assert str(answers[1]) in str(answers[0])  # the same, or an error of ours that says theirs


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2", "opt"])
def test_prompts_of_one_token_and_as_long_as_the_context(family):
    """Also where a position beyond the context has no embedding: no draft goes there."""
    model = tiny_model(family)
    for length, new in ((1, 20), (255, 1), (256, 1), (250, 6)):
        ours, expected = both(model, prompts(1, length)[0], max_new_tokens=new, eos_token_id=None)
        assert torch.equal(ours, expected) and ours.shape[1] == length + new


def test_stop_strings(model):
    tokenizer, prompt = letters(), prompts(1)[0]
    own = own_text(model, prompt, max_new_tokens=30, eos_token_id=None)
    for text in (tokenizer.decode(own[0, 13:15]), tokenizer.decode(own[0, 20:21])):
        kwargs = {"stop_strings": [text], "tokenizer": tokenizer, "max_new_tokens": 30, "eos_token_id": None}
        ours, expected = both(model, prompt, **kwargs)
        assert torch.equal(ours, expected)
        config = GenerationConfig(stop_strings=[text], max_new_tokens=30, pad_token_id=0)
        ours, expected = both(model, prompt, generation_config=config, tokenizer=tokenizer)
        assert torch.equal(ours, expected)
    with pytest.raises(InvalidInputError, match="tokenizer"):
        both(model, prompt, stop_strings=["a"], max_new_tokens=3)


class After(StoppingCriteria):
    """Stops when the sum of all tokens is large enough: at any place, draft or not."""

    def __init__(self, total):
        self.total = total

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.sum(-1) >= self.total


@pytest.mark.parametrize("total", [300, 600, 900, 1300])
def test_stopping_criteria_of_ones_own(model, total):
    ours, expected = both(
        model, prompts(1)[0], stopping_criteria=StoppingCriteriaList([After(total)]), max_new_tokens=40
    )
    assert torch.equal(ours, expected)


class Asked(StoppingCriteria):
    """Stops after it has been asked so often: what a time limit looks like in the middle of a round."""

    def __init__(self, times):
        self.left = times

    def __call__(self, input_ids, scores, **kwargs):
        self.left -= 1
        return torch.tensor([self.left < 0])


class Flickering(StoppingCriteria):
    """Says stop every third time it is asked, so that a draft may end the text when drafted and not when emitted."""

    asked = 0

    def __call__(self, input_ids, scores, **kwargs):
        self.asked += 1
        return torch.tensor([self.asked % 3 == 0])


@pytest.fixture(scope="module")
def forty(model):
    return own_text(model, prompts(1)[0], max_new_tokens=40, eos_token_id=None)


def test_a_criterion_that_changes_its_mind_still_cuts_the_models_own_text(model, forty):
    heads = random_heads(model)
    for policy in (POLICY, eelib.FixedExit(5, 4), eelib.FixedExit(5, 1), eelib.FixedExit(5, 2)):
        out = eelib.generate(
            model, prompts(1)[0], heads=heads, policy=policy, max_new_tokens=40, eos_token_id=None,
            stopping_criteria=StoppingCriteriaList([Flickering()]),
        )  # fmt: skip
        assert torch.equal(out.sequences, forty[:, : out.sequences.shape[1]])


@pytest.mark.parametrize("times", range(1, 12))
def test_a_limit_that_strikes_anywhere_cuts_the_models_own_text(model, forty, times):
    for policy in (POLICY, eelib.FixedExit(5, 4)):
        out = eelib.generate(
            model, prompts(1)[0], heads=random_heads(model), policy=policy, max_new_tokens=40, eos_token_id=None,
            stopping_criteria=StoppingCriteriaList([Asked(times)]),
        )  # fmt: skip
        assert torch.equal(out.sequences, forty[:, : out.sequences.shape[1]])
        assert len(out.trace) == out.stats.emitted + out.stats.drafted - out.stats.accepted


def test_the_hugging_face_way(model):
    heads, prompt = random_heads(model), prompts(1)[0]
    kwargs = {"custom_generate": eelib.custom_generate, "heads": heads, "policy": eelib.FixedExit(3, 4)}
    own = own_text(model, prompt, max_new_tokens=20)
    assert torch.equal(model.generate(prompt, max_new_tokens=20, do_sample=False, **kwargs), own)
    full = model.generate(prompt, max_new_tokens=20, do_sample=False, return_dict_in_generate=True, **kwargs)
    assert torch.equal(full.sequences, own) and full.stats.drafted > 0
    with pytest.raises(InvalidInputError, match="policy"):
        model.generate(prompt, custom_generate=eelib.custom_generate, max_new_tokens=3)


class Streamer(BaseStreamer):
    def __init__(self, fails_at=None):
        self.tokens, self.ended, self.fails_at = [], 0, fails_at

    def put(self, value):
        if len(self.tokens) == self.fails_at:
            raise KeyboardInterrupt
        self.tokens.append(value.flatten().tolist())

    def end(self):
        self.ended += 1


def test_streamer_gets_final_tokens_only_as_transformers_hands_them_out(model):
    ours, theirs, prompt = Streamer(), Streamer(), prompts(1)[0]
    eelib.generate(model, prompt, heads=random_heads(model), policy=POLICY, streamer=ours, max_new_tokens=15)
    own_text(model, prompt, streamer=theirs, max_new_tokens=15)
    assert ours.tokens == theirs.tokens and ours.ended == theirs.ended == 1


REFUSALS = {
    "no prompt": lambda llama: {"input_ids": None},
    "a batch": lambda llama: {"input_ids": torch.cat(prompts(2))},
    "unknown tokens": lambda llama: {"input_ids": [1, 10_000]},
    "an option": lambda llama: {"num_beams": 2},
    "an argument": lambda llama: {"assistant_model": "a model"},
    "an argument of transformers": lambda llama: {"max_new_tokens": -1},
    "no policy": lambda llama: {"policy": None},
    "no heads": lambda llama: {"heads": "heads"},
    "other heads": lambda llama: {"heads": random_heads(tiny_model("llama", seed=4))},
    "a depth without a head": lambda llama: {"heads": random_heads(llama), "policy": eelib.FixedExit(2, 2)},
    "stop strings without a tokenizer": lambda llama: {"stop_strings": "a"},
    "a mask": lambda llama: {"attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 0]])},
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_streamer_is_ended_by_refusals_too(llama, refusal):
    """Somebody may wait for it in another thread."""
    given = {"input_ids": prompts(1)[0], "policy": eelib.FixedExit(3, 2), "max_new_tokens": 3}
    streamer = Streamer()
    with pytest.raises((EelibError, ValueError)):
        eelib.generate(llama, streamer=streamer, **{**given, **REFUSALS[refusal](llama)})
    assert streamer.ended == 1


@pytest.mark.parametrize("fails_at", [0, 1, 5])
def test_an_interrupt_leaves_the_model_usable_and_the_streamer_closed(model, fails_at):
    prompt, streamer, heads = prompts(1)[0], Streamer(fails_at), random_heads(model)
    before = own_text(model, prompt, max_new_tokens=10)
    with pytest.raises(KeyboardInterrupt):
        eelib.generate(model, prompt, heads=heads, policy=POLICY, streamer=streamer, max_new_tokens=10)
    assert streamer.ended == 1
    assert torch.equal(own_text(model, prompt, max_new_tokens=10), before)
    assert torch.equal(eelib.generate(model, prompt, heads=heads, policy=POLICY, max_new_tokens=10).sequences, before)


def test_processors_that_leave_a_head_nothing(llama):
    """Every token of the draft vocabulary is suppressed: the head declines, and the text is the model's own."""
    heads = eelib.ExitHeads(eelib.HeadConfig((2,), "affine", 10), llama, torch.arange(10)).to(torch.float64)
    kwargs = {"suppress_tokens": list(range(20)), "max_new_tokens": 12}
    out = eelib.generate(llama, prompts(1)[0], heads=heads, policy=eelib.FixedExit(2, 3), **kwargs)
    assert out.stats.drafted == 0 and torch.equal(out.sequences, own_text(llama, prompts(1)[0], **kwargs))


@pytest.mark.parametrize("way", ["argument", "generation_config"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"forced_eos_token_id": 1000}, r"names tokens \[1000\]"),
        ({"forced_eos_token_id": [3, 1000]}, r"names tokens \[1000\]"),
        ({"exponential_decay_length_penalty": (2, 1.1), "eos_token_id": 1000}, r"names tokens \[1000\]"),
        ({"exponential_decay_length_penalty": (2, -1.0)}, "expected a number above 0|expected a positive number"),
        ({"bad_words_ids": [[3], [5, 1000]]}, r"names tokens \[1000\]"),
        ({"sequence_bias": [[[3, 1000], 1.0]]}, r"names tokens \[1000\]"),
        ({"sequence_bias": {(1000,): 1.0}}, r"names tokens \[1000\]"),
        ({"begin_suppress_tokens": [True]}, "begin_suppress_tokens=True: expected a whole number"),
        ({"no_repeat_ngram_size": True}, "no_repeat_ngram_size=True: expected a whole number"),
        ({"max_time": "soon"}, "max_time='soon'"),
    ],
    ids=str,
)
def test_values_that_transformers_fails_on_in_the_middle_are_refused(llama, options, says, way):
    given = options if way == "argument" else {"generation_config": GenerationConfig(max_new_tokens=2, **options)}
    with pytest.raises(InvalidInputError, match=says):
        eelib.generate(llama, prompts(1)[0], policy=eelib.Never(), **({"max_new_tokens": 2} | given))


def test_several_forced_ends_are_taken(llama):
    options = {"max_new_tokens": 4, "forced_eos_token_id": [3, 4]}
    ours = eelib.generate(llama, prompts(1)[0], policy=eelib.FixedExit(3, 2), **options)
    assert ours.sequences.tolist() == own_text(llama, prompts(1)[0], **options).tolist()
