"""The continuous batch: prompts come as they come, texts leave as they end, and none takes another along."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import POISON, SURE, Streamer, lengths
from tiny import own_text, prompts, random_heads, tiny_model

import eelib
from eelib.decoding import Batcher

_LLAMA = tiny_model("llama")
_HEADS = random_heads(_LLAMA)


def test_texts_leave_as_they_end_and_the_next_prompt_takes_the_place(llama):
    asked, pulled, most = lengths(7), [], 0

    def source():
        for prompt in asked:
            pulled.append(prompt)
            yield prompt

    batcher = Batcher(llama, policy=SURE, heads=random_heads(llama), rows=3, max_new_tokens=12)
    for done in batcher.run(source()):
        assert torch.equal(
            done.result().sequences, own_text(llama, torch.tensor([asked[done.number]]), max_new_tokens=12)
        )
        most = max(most, batcher.in_flight + 1)
        asked[done.number] = None
    assert not any(asked) and most <= 3 and len(pulled) == 7 and batcher.in_flight == batcher.waiting == 0


def test_prompts_may_be_added_while_others_are_decoded(llama):
    batcher = Batcher(llama, policy=eelib.FixedExit(3, 2), rows=2, max_new_tokens=6, eos_token_id=None)
    first, found = [batcher.add(prompt) for prompt in lengths(2)], []
    for done in batcher:
        found.append(done.number)
        if len(found) == 1:
            late = batcher.add([5, 6], max_new_tokens=3, policy=eelib.Never())
        if done.number == 2:
            assert done.result().stats.emitted == 3
    assert sorted(found) == [*first, late] == [0, 1, 2]


@pytest.mark.parametrize("kind", POISON)
def test_a_poisoned_row_fails_alone(kind):
    model, asked = tiny_model("gpt2"), lengths(4)
    batcher = Batcher(model, policy=SURE, heads=random_heads(model), rows=2, max_new_tokens=8)
    poison, options = POISON[kind]
    numbers = [batcher.add(prompt) for prompt in asked[:2]] + [batcher.add(poison, **options)]
    numbers += [batcher.add(prompt) for prompt in asked[2:]]
    found = {done.number: done for done in batcher}
    assert sorted(found) == numbers
    assert [number for number, done in found.items() if done.error is not None] == [2]
    with pytest.raises(type(found[2].error)):
        found[2].result()
    for number, prompt in zip((0, 1, 3, 4), asked, strict=True):
        own = own_text(model, torch.tensor([prompt]), max_new_tokens=8)
        assert torch.equal(found[number].output.sequences, own)


def test_an_interrupt_leaves_the_model_clean_and_the_streamers_closed(llama):
    class Interrupts(Streamer):
        def put(self, value):
            super().put(value)
            if len(self.tokens) > 12:
                raise KeyboardInterrupt

    streamers = Streamer(), Interrupts()
    batcher = Batcher(llama, policy=eelib.FixedExit(3, 2), rows=3, max_new_tokens=20, eos_token_id=None)
    for streamer in streamers:
        batcher.add([5, 6, 7], streamer=streamer)
    with pytest.raises(KeyboardInterrupt):
        list(batcher)
    assert [streamer.ended for streamer in streamers] == [1, 1] and batcher.in_flight == 0
    batcher.add([5, 6, 7])
    own = own_text(llama, torch.tensor([[5, 6, 7]]), max_new_tokens=20, eos_token_id=None)
    assert torch.equal(next(iter(batcher)).result().sequences, own)


def test_sampling_with_seeds_does_not_depend_on_the_others(llama):
    texts = []
    for beside in (0, 3):
        batcher = Batcher(llama, policy=eelib.FixedExit(3, 2), do_sample=True, max_new_tokens=10, rows=4)
        for prompt in lengths(beside) if beside else ():
            batcher.add(prompt)
        number = batcher.add([5, 6, 7], seed=11)
        texts.append(next(done for done in batcher if done.number == number).result().sequences.tolist())
    assert texts[0] == texts[1]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.large_base_example])
@given(data=st.data())
def test_any_arrivals(data):
    any_arrivals(data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.large_base_example])
@given(data=st.data())
def test_any_arrivals_at_length(data):
    any_arrivals(data)


def any_arrivals(data):
    """Prompts that are added at any time, under any rule, beside others at any place."""
    asked, new = (
        lengths(6, data.draw(st.integers(0, 5))),
        data.draw(st.lists(st.integers(1, 12), min_size=6, max_size=6)),
    )
    verify, gather = data.draw(st.booleans()), data.draw(st.sampled_from(["each", "all", "wait", "drex"]))
    kwargs = {"policy": SURE, "heads": _HEADS, "verify": verify}
    batcher = Batcher(_LLAMA, rows=data.draw(st.integers(1, 4)), gather=gather, **kwargs)
    waiting, found = list(zip(asked, new, strict=True)), {}
    while len(found) < 6:
        for prompt, most in waiting[: data.draw(st.integers(0, 3))]:
            batcher.add(prompt, max_new_tokens=most)
            waiting.pop(0)
        found |= {done.number: done.result() for done in itertools.islice(batcher, 1)}
    for number, (prompt, most) in enumerate(zip(asked, new, strict=True)):
        alone = eelib.generate(_LLAMA, prompt, max_new_tokens=most, **kwargs)
        assert torch.equal(found[number].sequences, alone.sequences)


def test_numbers_that_make_no_batch_are_refused(llama):
    for wrong in (0, 1.5, "many"):
        with pytest.raises(eelib.errors.InvalidInputError, match="rows="):
            Batcher(llama, policy=eelib.Never(), rows=wrong)


def test_prompts_of_a_tensor_are_rows(llama):
    batcher = Batcher(llama, policy=eelib.Never(), max_new_tokens=3)
    assert len(list(batcher.run(torch.cat(prompts(3))))) == 3
