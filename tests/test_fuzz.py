"""Public functions given anything: they do what they should, or raise one of eelib's own errors."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import letters, prompts, random_heads

import eelib
from eelib.corpus import CorpusConfig
from eelib.errors import EelibError
from eelib.heads import HeadConfig, TrainConfig

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(max_examples=100_000, deadline=None, suppress_health_check=list(HealthCheck))

numbers = st.one_of(
    st.integers(-3, 12), st.floats(-2, 12), st.sampled_from([math.nan, math.inf, -math.inf, 1e3, 2**63, True, False]),
    st.integers(-3, 12).map(np.int64), st.floats(-2, 2).map(np.float32), st.integers(-3, 12).map(torch.tensor),
)  # fmt: skip
words = st.sampled_from(
    ["", "entropy", "max_prob", "kl", "mlp", "none", "fused", "1e3", "2e-3", "false", "risk", "é\0"]
)
anything = st.one_of(
    numbers, words, st.none(), st.just(object()), st.binary(max_size=3),
    st.lists(numbers, max_size=4), st.dictionaries(words, numbers, max_size=2), st.just(np.zeros((2, 3, 4))),
)  # fmt: skip
ids = st.one_of(
    anything, st.lists(st.integers(0, 96), max_size=6), st.lists(st.lists(st.integers(-1, 99), max_size=3), max_size=3),
    st.lists(st.integers(0, 96), min_size=1, max_size=6).map(np.array),
    st.lists(st.integers(0, 96), min_size=1, max_size=6).map(lambda row: torch.tensor([row], dtype=torch.int16)),
    st.lists(st.integers(0, 96), min_size=1, max_size=6).map(lambda row: {"input_ids": row}),
)  # fmt: skip


def of(*values):
    """Mostly what makes sense, sometimes anything."""
    return st.one_of(*map(st.just, values), anything)


@pytest.fixture(scope="module")
def heads(llama):
    return random_heads(llama)


@pytest.fixture(scope="module")
def traces(llama, heads):
    return eelib.record_traces(llama, heads, [prompt[0] for prompt in prompts(4, 12)])


def own_errors(call):
    """Whatever is raised is eelib's own."""
    try:
        return call()
    except EelibError as error:
        assert str(error), "an error that says nothing"
        return None


def fuzz_policies(data):
    makers = (
        lambda: eelib.FixedExit(data.draw(of(3)), data.draw(of(2))),
        lambda: eelib.Lookup(data.draw(of(4)), data.draw(of(0.5)), data.draw(st.lists(of(2), max_size=3))),
        lambda: eelib.Confidence(
            data.draw(of("entropy")), data.draw(st.lists(of(0.5, None), max_size=4)), data.draw(of(2)),
            data.draw(st.one_of(st.none(), st.lists(of(1), max_size=3))), data.draw(of(True)),
        ),
    )  # fmt: skip
    return own_errors(data.draw(st.sampled_from(makers)))


def fuzz_configs(data):
    cls, good = data.draw(
        st.sampled_from([
            (TrainConfig, {"epochs": 1, "batch_size": 2, "learning_rate": 1e-3, "warmup": 0.1, "loss": "kl", "seed": 0,
                           "sampled_classes": None, "drafts": 2, "log_every": 5}),
            (CorpusConfig, {"documents": 20, "length": 32, "temperatures": (0.0,), "prompt_length": 8, "int8": False,
                            "batch_size": 4, "loss_on": "answers", "seed": 0, "invent": False, "prompts": None}),
            (HeadConfig, {"depths": (1, 3), "kind": "mlp", "draft_vocab_size": None, "width": 8, "skip": True}),
        ])
    )  # fmt: skip
    given_ = {name: data.draw(of(value)) for name, value in good.items() if data.draw(st.booleans())}
    own_errors(lambda: cls(**({"depths": (1,)} if cls is HeadConfig else {}) | given_))


def fuzz_generate(data, llama, heads):
    policy = fuzz_policies(data) or data.draw(of(eelib.Never(), eelib.FixedExit(3, 2)))
    options = {"max_new_tokens": 4, "eos_token_id": None}
    if data.draw(st.booleans()):
        options |= {"exact": data.draw(st.sampled_from([True, False, None])), "verify": data.draw(st.booleans())}
    own_errors(
        lambda: eelib.generate(llama, data.draw(ids), policy=policy, heads=data.draw(of(heads, None)), **options)
    )


OPTIONS = {
    "max_new_tokens": 4, "min_new_tokens": 2, "eos_token_id": 3, "pad_token_id": 0, "do_sample": True,
    "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.9, "repetition_penalty": 1.2,
    "no_repeat_ngram_size": 2,
    "epsilon_cutoff": 0.1, "encoder_repetition_penalty": 1.1, "sequence_bias": [[[3], 1.0]], "bad_words_ids": [[3]],
    "suppress_tokens": [3], "begin_suppress_tokens": [3], "exponential_decay_length_penalty": (2, 1.1), "max_time": 5.0,
    "forced_eos_token_id": 3, "logits_processor": [], "stopping_criteria": [], "generation_config": None,
    "attention_mask": None, "position_ids": None, "past_key_values": None, "cache_implementation": None,
    "streamer": None, "num_beams": 1, "num_return_sequences": 1, "stop_strings": None, "tokenizer": None,
    "unknown": None,
    "custom_generate": None, "session": eelib.decoding.Session,
}  # fmt: skip


def fuzz_options(data, llama):
    """Most go on to transformers, which looks at some before decoding, at some in the middle, at some never."""
    names = data.draw(st.sets(st.sampled_from(sorted(OPTIONS)), min_size=1, max_size=3))
    given_ = {"max_new_tokens": 4} | {name: data.draw(of(OPTIONS[name])) for name in names}
    own_errors(lambda: eelib.generate(llama, prompts(1)[0], policy=eelib.FixedExit(3, 2), **given_))


def fuzz_traces(data, llama, heads):
    given_ = data.draw(st.one_of(ids, st.lists(ids, max_size=3)))
    mask = data.draw(st.one_of(st.none(), st.just([[True, False]]), st.lists(anything, max_size=2)))
    call = data.draw(st.sampled_from([
        lambda: eelib.record_traces(llama, heads, given_, loss_mask=mask),
        lambda: eelib.evaluate_heads(llama, heads, given_, mask),
        lambda: eelib.train_heads(llama, copy.deepcopy(heads), given_, TrainConfig(epochs=1), loss_mask=mask),
        lambda: eelib.train_heads(llama, copy.deepcopy(heads), [[1, 2]], TrainConfig(epochs=1), validation=given_),
        lambda: eelib.ExitHeads.init(llama, (1, 3), "none", 20, sequences=given_, tokenizer=letters()),
        lambda: eelib.verify_lossless(llama, heads, eelib.FixedExit(3, 2), given_, max_new_tokens=2),
    ]))  # fmt: skip
    own_errors(call)


def fuzz_calibration(data, traces):
    method = data.draw(of("empirical", "cascade", "risk"))
    given_ = {"target": data.draw(of("exit_agreement")), "method": method, "delta": data.draw(of(None, 0.1))}
    table = data.draw(st.sampled_from([traces, traces[:0], traces.drop(columns="agrees"), traces[:1]]))
    own_errors(lambda: eelib.calibrate(table, data.draw(of("entropy")), data.draw(of(0.5)), **given_))


def fuzz_heads(data, llama):
    given_ = {"kind": data.draw(of("affine")), "draft_vocab_size": data.draw(of(None, 20)), "seed": data.draw(of(0))}
    given_ |= {"width": data.draw(of(8, None)), "skip": data.draw(of(True))}
    text = {"sequences": [prompts(1)[0][0]], "tokenizer": letters()}
    own_errors(lambda: eelib.ExitHeads.init(llama, data.draw(of((1, 3), 2)), **given_, **text))


@QUICK
@given(data=st.data())
def test_anything(llama, heads, traces, data):
    every(data, llama, heads, traces)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@LONG
@given(data=st.data())
def test_anything_for_long(llama, heads, traces, data):
    every(data, llama, heads, traces)


def every(data, llama, heads, traces):
    parts = (
        lambda: fuzz_policies(data),
        lambda: fuzz_configs(data),
        lambda: fuzz_generate(data, llama, heads),
        lambda: fuzz_options(data, llama),
        lambda: fuzz_traces(data, llama, heads),
        lambda: fuzz_calibration(data, traces),
        lambda: fuzz_heads(data, llama),
    )
    data.draw(st.sampled_from(parts))()


@pytest.mark.parametrize("huge", [2**63, 2**40, 10**9])
def test_no_memory_is_asked_for_by_a_huge_number(llama, huge):
    """Nor does anything count to it."""
    text = {"sequences": [prompts(1)[0][0]], "tokenizer": letters()}
    calls = (
        lambda: eelib.ExitHeads.init(llama, huge),
        lambda: eelib.ExitHeads.init(llama, [huge]),
        lambda: eelib.ExitHeads.init(llama, (1, 3), width=huge),
        lambda: eelib.ExitHeads.init(llama, (1, 3), "mlp", huge, **text),
        lambda: eelib.generate(llama, prompts(1)[0], policy=eelib.FixedExit(huge, 2)),
        lambda: eelib.load_corpus(CorpusConfig("self", documents=20, length=huge), llama, letters()),
        lambda: eelib.generate(llama, [[huge]], policy=eelib.Never()),
    )
    for call in calls:
        with pytest.raises(EelibError):
            call()


def test_tables_that_are_no_traces(llama):
    for table in (pd.DataFrame(), pd.DataFrame({"depth": [1]}), None, []):
        with pytest.raises(EelibError):
            eelib.calibrate(table, "entropy", 0.5)
