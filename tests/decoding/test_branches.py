"""Logits processors and stopping criteria that keep a state: drafts are asked of copies."""

import threading

import pytest
import torch
from tiny import VOCAB_SIZE, prompts, random_heads
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

import eelib
from eelib.decoding.branches import branch
from eelib.errors import UnsupportedError

POLICIES = (eelib.FixedExit(3, 3), eelib.FixedExit(5, 6), eelib.Lookup(), eelib.Never())
LENGTH = {"max_new_tokens": 40, "eos_token_id": None, "do_sample": False}


class Counting(LogitsProcessor):
    """Every third call forbids what leads, as a matcher that moves on with each call would."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        if self.calls % 3 == 0:
            return scores.scatter(1, scores.argmax(-1, keepdim=True), float("-inf"))
        return scores


class Matcher(LogitsProcessor):
    """Moves on by the token it is shown, as grammars do; holds a model, which is not to be copied."""

    def __init__(self, model):
        self.model, self.seen = model, []

    def __call__(self, input_ids, scores):
        self.seen.append(int(input_ids[0, -1]))
        return scores.index_fill(1, torch.tensor([sum(self.seen) % VOCAB_SIZE]), float("-inf"))


def counting_closure():
    calls = 0

    def process(input_ids, scores):
        nonlocal calls
        calls += 1
        return scores.index_fill(1, torch.tensor([calls % VOCAB_SIZE]), float("-inf"))

    return process


def method_of_a_counter():
    counter = Counting()
    return counter.__call__


def only_the_prefix():
    return lambda input_ids, scores: scores.index_fill(1, input_ids[0, -2:], float("-inf"))


class StopsAtCall(StoppingCriteria):
    def __init__(self, n):
        self.left = n

    def __call__(self, input_ids, scores, **kwargs):
        self.left -= 1
        return torch.tensor([self.left <= 0])


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("make", [Counting, counting_closure, method_of_a_counter, only_the_prefix])
def test_the_text_is_the_models_whatever_a_processor_counts(llama, make, policy):
    heads = None if isinstance(policy, eelib.Lookup | eelib.Never) else random_heads(llama)
    for prompt in prompts(2):
        own = llama.generate(prompt, logits_processor=LogitsProcessorList([make()]), **LENGTH)
        given = LogitsProcessorList([make()])
        out = eelib.generate(llama, prompt, policy=policy, heads=heads, logits_processor=given, **LENGTH)
        assert torch.equal(out.sequences, own)


def test_what_a_processor_holds_is_shared_where_it_is_large(llama):
    matcher, prompt = Matcher(llama), prompts(1)[0]
    own = llama.generate(prompt, logits_processor=LogitsProcessorList([Matcher(llama)]), **LENGTH)
    given = LogitsProcessorList([matcher])
    out = eelib.generate(llama, prompt, policy=POLICIES[0], heads=random_heads(llama), logits_processor=given, **LENGTH)
    assert torch.equal(out.sequences, own) and matcher.seen == own[0, 6:-1].tolist()
    (copied,) = branch([matcher])
    assert copied is not matcher and copied.model is llama and copied.seen == matcher.seen is not copied.seen


def test_a_function_of_allowed_tokens_that_counts(llama):
    def allowing():
        calls = []

        def allowed(batch, input_ids):
            calls.append(0)
            return [token for token in range(VOCAB_SIZE) if token % 3 != len(calls) % 3]

        return allowed

    prompt = prompts(1)[0]
    own = llama.generate(prompt, prefix_allowed_tokens_fn=allowing(), **LENGTH)
    options = {"prefix_allowed_tokens_fn": allowing(), **LENGTH}
    out = eelib.generate(llama, prompt, policy=POLICIES[0], heads=random_heads(llama), **options)
    assert torch.equal(out.sequences, own)


def test_a_stopping_criterion_that_counts(llama):
    prompt = prompts(1)[0]
    own = llama.generate(prompt, stopping_criteria=StoppingCriteriaList([StopsAtCall(9)]), **LENGTH)
    for policy in POLICIES[:2]:
        given = StoppingCriteriaList([StopsAtCall(9)])
        out = eelib.generate(llama, prompt, policy=policy, heads=random_heads(llama), stopping_criteria=given, **LENGTH)
        assert torch.equal(out.sequences, own) and out.stats.emitted == 9


def test_what_cannot_be_copied_is_refused_by_name(llama):
    class Locked(Counting):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    given, prompt = LogitsProcessorList([Locked()]), prompts(1)[0]
    with pytest.raises(UnsupportedError, match="Locked cannot be copied"):
        eelib.generate(llama, prompt, policy=POLICIES[0], heads=random_heads(llama), logits_processor=given, **LENGTH)
    own = llama.generate(prompt, logits_processor=LogitsProcessorList([Locked()]), **LENGTH)
    given = LogitsProcessorList([Locked()])
    out = eelib.generate(llama, prompt, policy=eelib.Never(), logits_processor=given, **LENGTH)
    assert torch.equal(out.sequences, own)
