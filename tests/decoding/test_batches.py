"""Batches: every row's text is what it would be alone, whoever shares its calls."""

import pandas as pd
import pytest
import torch
from architectures import NAMES, tiny_architecture
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import POISON, SURE, After, Streamer, lengths
from tiny import FAMILIES, N_BLOCKS, PROJECT, VOCAB_SIZE, Pattern, letters, own_text, prompts, random_heads, tiny_model
from transformers import LogitsProcessor

import eelib
from eelib.backbone.segments import Backbone
from eelib.baselines.calm import CALM, CALMSession
from eelib.baselines.ee_llm import EELLMSession
from eelib.decoding import Session
from eelib.decoding.batches import DREX, All, Each, Gathering, Wait
from eelib.decoding.batches.ragged import Ragged
from eelib.decoding.bitwise import RowExact
from eelib.decoding.output import TRACE_COLUMNS
from eelib.errors import EelibError, InvalidInputError, UnsupportedError

POLICIES = (SURE, eelib.FixedExit(3, 4), eelib.Never(), Pattern((5, 1, 3, None, 1, 5, 3)), eelib.Lookup())
GATHER = ("each", "all", "wait", "drex")
QUICK = ("llama", "mistral", "gemma2", "gpt2", "bloom")
"""Rotary, learned and linear positions, windows, attention by sdpa, in eager and in a model's own way."""


def differing(model, asked, row_options, gather="each", **kwargs) -> tuple[list[int], object]:
    """Numbers of the rows that are other texts than alone, or take other work to it, and the batch's output."""
    out = eelib.generate(model, asked, row_options=row_options, gather=gather, **kwargs)
    found = []
    for number, (prompt, own, row) in enumerate(zip(asked, row_options, out.rows, strict=True)):
        alone = eelib.generate(model, prompt, **{**kwargs, **own})
        traces = [found.trace.drop(columns="score") for found in (alone, row)]  # equal up to rounding
        same = torch.equal(alone.sequences, row.sequences) and traces[0].equals(traces[1])
        if gather in ("each", "wait"):  # no block works twice for a row, nor for one that has ended
            same &= alone.stats.block_positions == row.stats.block_positions
        if not same:
            found.append(number)
    return found, out


@pytest.fixture(
    scope="module",
    params=[family if family in QUICK else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES],
)
def family_model(request):
    return tiny_model(request.param)


@pytest.mark.parametrize("verify", [True, False])
def test_rows_are_what_they_would_be_alone(family_model, verify):
    """Rows of other policies, lengths and stops beside each other, past the sliding windows."""
    heads, asked = random_heads(family_model), lengths(5)
    own = [{"policy": policy, "max_new_tokens": new} for policy, new in zip(POLICIES, (14, 9, 16, 12, 5), strict=True)]
    own[1]["eos_token_id"] = own_text(family_model, torch.tensor([asked[1]]), max_new_tokens=9)[0, -2].item()
    if not verify:
        own[4]["policy"] = SURE
    for gather in GATHER[N_BLOCKS % 2 :: 2] if verify else GATHER[1 - N_BLOCKS % 2 :: 2]:
        wrong, out = differing(family_model, asked, own, gather, heads=heads, policy=SURE, verify=verify)
        assert not wrong
        settled = (~out.trace.drafted | out.trace.accepted).sum()
        assert out.stats.emitted == sum(row.stats.emitted for row in out.rows) == settled


def test_rows_share_calls_where_the_model_can(llama):
    asked = lengths(5)
    alone = [eelib.generate(llama, prompt, policy=eelib.Never(), max_new_tokens=12) for prompt in asked]
    out = eelib.generate(llama, asked, policy=eelib.Never(), max_new_tokens=12)
    assert out.stats.shared and out.stats.block_calls == (max(a.stats.block_calls[0] for a in alone),) * N_BLOCKS
    assert out.stats.block_positions == tuple(map(sum, zip(*(a.stats.block_positions for a in alone), strict=True)))
    assert out.stats.positions_a_call > 4


@pytest.mark.parametrize(
    ("name", "why"), [("bloom", "surrounds its blocks"), ("deepseek_v2", "other keys than its cache")]
)
def test_where_a_model_cannot_rows_run_one_by_one_and_it_says_so(name, why):
    model = tiny_architecture(name)  # with linear biases; with keys made of a latent
    assert why in Ragged.of(Backbone.of(model)).refusal
    out = eelib.generate(model, lengths(3), policy=eelib.Never(), max_new_tokens=6, eos_token_id=None)
    assert not out.stats.shared and out.stats.positions_a_call < 2


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_batch(data):
    any_batch(data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_any_batch_at_length(data):
    any_batch(data)


def any_batch(data):
    """Random thresholds, stops, lengths, sizes and rules."""
    family = data.draw(st.sampled_from(["llama", "mistral"]))
    model = _MODELS.setdefault(family, tiny_model(family))
    heads, n, verify = random_heads(model, seed=3), data.draw(st.integers(2, 8)), data.draw(st.booleans())
    rule = data.draw(
        st.sampled_from(
            [*GATHER, Wait(0.0, 1), Wait(1.0, 30), DREX(1, 1.0), DREX(5, 0.2, 2), Random(data.draw(st.integers(0, 99)))]
        )
    )
    own = [
        {
            "policy": eelib.Confidence(
                "max_prob", data.draw(st.tuples(*[st.none() | st.floats(0, 1)] * 3)), data.draw(st.integers(1, 5)),
                back_off=data.draw(st.booleans()),
            ),
            "max_new_tokens": data.draw(st.integers(1, 14)), "eos_token_id": data.draw(st.integers(3, VOCAB_SIZE - 1)),
        }
        for _ in range(n)
    ]  # fmt: skip
    wrong, _ = differing(
        model, lengths(n, data.draw(st.integers(0, 5))), own, rule, heads=heads, policy=SURE, verify=verify
    )
    assert not wrong


_MODELS = {}


class Random(Gathering):
    """Serves any place, and lets ride along whom it likes."""

    def __init__(self, seed):
        self.draw = torch.Generator().manual_seed(seed)

    def choose(self, waits, rows):
        return sorted(waits)[torch.randint(len(waits), (), generator=self.draw)]

    def carries(self, staying, leaving):
        return bool(torch.rand((), generator=self.draw) < 0.5)


def test_rules_choose():
    waits = {0: [0, 1, 0], 3: [5], 5: [2, 2]}
    assert All().choose(waits, 6) == 5 and All().carries(1, 5)
    assert Each().choose(waits, 6) == 3 and not Each().carries(1, 5)
    assert Wait(0.5).choose(waits, 6) == 0 and Wait(0.3).choose(waits, 6) == 0 and Wait(0.5, 5).choose(waits, 6) == 3
    assert Wait(1.0, 9).choose(waits, 6) == 0  # none is due: the fullest
    assert (
        DREX().choose(waits, 6) == 0
        and DREX(buffer=0.3).choose(waits, 6) == 5
        and DREX(patience=5).choose(waits, 6) == 3
    )
    assert DREX(threshold=4).choose(waits, 6) == 5 and DREX().carries(3, 1) and not DREX().carries(3, 2)
    for wrong in ("some", None, 3):
        with pytest.raises(InvalidInputError, match="'each'"):
            eelib.generate(tiny_model("llama"), [[1], [2]], policy=eelib.Never(), gather=wrong)


def test_everyone_leaves_at_the_same_exit_and_the_others_do_not(llama):
    """Exits that are lost where rows wait for each other, and none that are lost where they do not."""
    kwargs = {"heads": random_heads(llama), "policy": SURE, "verify": False, "max_new_tokens": 20, "eos_token_id": None}
    outs = {rule: eelib.generate(llama, lengths(4), gather=rule, **kwargs) for rule in GATHER}
    assert outs["each"].stats.exits_lost == outs["wait"].stats.exits_lost == 0 < outs["all"].stats.exits_lost
    exits = (outs["all"].trace.depth < N_BLOCKS).sum()
    assert outs["all"].stats.exits_lost <= exits
    assert all(outs["all"].sequences.equal(out.sequences) for out in outs.values())


def test_a_rule_that_chooses_no_place_is_refused(llama):
    class Nowhere(Gathering):
        def choose(self, waits, rows):
            return 99

    with pytest.raises(InvalidInputError, match="chose place 99"):
        eelib.generate(llama, lengths(2), policy=eelib.Never(), gather=Nowhere())


def test_sequences_are_laid_out_as_transformers_does(llama):
    """Padded on the left before, on the right after; from a list, a padded tensor or a tokenizer."""
    asked = lengths(3)
    longest = max(map(len, asked))
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in asked])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in asked])
    kwargs = {"max_new_tokens": 12, "eos_token_id": [7, 30, 50]}
    theirs = llama.generate(padded, attention_mask=mask, do_sample=False, pad_token_id=0, **kwargs)
    for given_, more in (
        (asked, {}), (padded, {"attention_mask": mask}), (padded.numpy(), {"attention_mask": mask.bool()}),
        ({"input_ids": padded, "attention_mask": mask}, {}), ({"input_ids": asked}, {}),
        ([torch.tensor(prompt) for prompt in asked], {"attention_mask": [[1] * len(prompt) for prompt in asked]}),
        ([{"input_ids": prompt} for prompt in asked], {}),
    ):  # fmt: skip
        out = eelib.generate(llama, given_, policy=eelib.FixedExit(3, 2), **kwargs, **more)
        assert torch.equal(out.sequences, theirs)
    one = [
        eelib.generate(llama, given_, policy=eelib.Never(), **kwargs)
        for given_ in (asked[0], [torch.tensor([asked[0]])])
    ]
    assert torch.equal(one[0].sequences, one[1].sequences) and torch.equal(one[0].sequences, out.rows[0].sequences)
    assert list(out.trace) == ["row", *TRACE_COLUMNS]
    assert "BatchOutput" in repr(out) and "rows" in out._repr_html_()


def test_exact_rows_have_the_bits_of_plain_decoding_alone():
    """In bfloat16, where any other order of additions would show: the model's own texts, row by row."""
    model = tiny_model("llama", torch.bfloat16, seed=4)
    try:
        RowExact.of(Backbone.of(model))
    except UnsupportedError:
        pytest.skip("this machine cannot verify bit for bit")
    asked = lengths(5)
    for policy in (eelib.FixedExit(3, 4), eelib.Never()):
        out = eelib.generate(model, asked, heads=random_heads(model), policy=policy, exact=True, max_new_tokens=30)
        assert out.stats.exact
        for prompt, row in zip(asked, out.rows, strict=True):
            assert torch.equal(row.sequences, own_text(model, torch.tensor([prompt]), max_new_tokens=30))
    padded, mask = torch.tensor([[0, 5], [6, 7]]), torch.tensor([[0, 1], [1, 1]])
    with pytest.raises(UnsupportedError, match=r"Row 0: exact=True with masked tokens .* 1 of this prompt"):
        eelib.generate(model, padded, attention_mask=mask, policy=SURE, exact=True, heads=random_heads(model))
    no_end = {"eos_token_id": None, "pad_token_id": 5, "policy": SURE, "exact": True, "heads": random_heads(model)}
    with pytest.raises(UnsupportedError, match="Without a mask, transformers masks every pad_token_id"):
        eelib.generate(model, [[6, 5, 7]], **no_end)
    assert eelib.generate(model, [[6, 5, 7]], **no_end | {"pad_token_id": None}, max_new_tokens=4).stats.exact


def test_a_row_draws_what_it_would_alone(llama):
    """Whoever is beside it; the same prompt twice with other seeds is another text."""
    kwargs = {"heads": random_heads(llama), "do_sample": True, "max_new_tokens": 16, "top_k": 20}
    for policy in (eelib.FixedExit(3, 3), eelib.Never()):
        asked, seeds = [*lengths(3), lengths(3)[0]], [3, 1, 2, 4]
        out = eelib.generate(llama, asked, policy=policy, seeds=seeds, **kwargs)
        for prompt, seed, row in zip(asked, seeds, out.rows, strict=True):
            torch.manual_seed(seed)
            alone = eelib.generate(llama, prompt, policy=policy, **kwargs)
            assert torch.equal(row.sequences, alone.sequences)
            assert torch.equal(
                eelib.generate(llama, prompt, policy=policy, seeds=seed, **kwargs).sequences, alone.sequences
            )
        assert not torch.equal(out.rows[0].sequences, out.rows[3].sequences)
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(eelib.generate(llama, asked, policy=policy, **kwargs).sequences.tolist())
    assert texts[0] == texts[1] != texts[2]


def test_several_sequences_of_one_prompt(llama):
    kwargs = {"policy": eelib.FixedExit(3, 2), "max_new_tokens": 10, "eos_token_id": None}
    out = eelib.generate(llama, prompts(1)[0], num_return_sequences=3, do_sample=True, seeds=[0, 1, 0], **kwargs)
    assert out.sequences.shape == (3, 17) and torch.equal(out.sequences[0], out.sequences[2])
    assert not torch.equal(out.sequences[0], out.sequences[1])
    out = eelib.generate(llama, lengths(2), num_return_sequences=2, do_sample=True, **kwargs)
    starts = [row.sequences[0, : -row.stats.emitted].tolist() for row in out.rows]
    assert starts == [lengths(2)[i] for i in (0, 0, 1, 1)]
    with pytest.raises(InvalidInputError, match="without do_sample=True"):
        eelib.generate(llama, prompts(1)[0], num_return_sequences=3, **kwargs)


class Shy(LogitsProcessor):
    """Never says what it has said before: a state that must not be shared."""

    def __init__(self):
        self.said = set()

    def __call__(self, input_ids, scores):
        self.said.add(input_ids[0, -1].item())
        return scores.index_fill(1, torch.tensor(sorted(self.said)), -1e9)


def test_processors_and_criteria_with_a_state_are_each_rows_own(llama):
    asked, kwargs = lengths(4), {"heads": random_heads(llama), "max_new_tokens": 14}
    out = eelib.generate(llama, asked, policy=SURE, logits_processor=[Shy()], stopping_criteria=[After(9)], **kwargs)
    for prompt, row in zip(asked, out.rows, strict=True):
        rules = {"logits_processor": [Shy()], "stopping_criteria": [After(9)]}
        assert torch.equal(row.sequences, eelib.generate(llama, prompt, policy=SURE, **rules, **kwargs).sequences)


def test_stop_strings_end_each_row(llama):
    tokenizer, asked = letters(), lengths(3)
    whole = [own_text(llama, torch.tensor([prompt]), max_new_tokens=20, eos_token_id=None)[0] for prompt in asked]
    own = [{"stop_strings": tokenizer.decode(text[-n : -n + 1])} for text, n in zip(whole, (12, 8, 4), strict=True)]
    wrong, out = differing(
        llama, asked, own, policy=eelib.FixedExit(3, 3), tokenizer=tokenizer, max_new_tokens=20, eos_token_id=None
    )
    assert not wrong and len({row.stats.emitted for row in out.rows}) > 1


class Bounded(Session):
    def draft(self, prefix):
        waiting = self.frontier.length - self.frontier.completed
        return super().draft(prefix) if waiting <= 3 else None


@pytest.mark.parametrize("session", [Bounded, EELLMSession, CALMSession])
@pytest.mark.parametrize("gather", ["each", "all"])
def test_sessions_of_ones_own_decode_in_batches_too(llama, session, gather):
    policy = CALM("softmax", 0.3) if session is CALMSession else SURE
    wrong, _ = differing(
        llama, lengths(3), [{}] * 3, gather, heads=random_heads(llama), policy=policy, session=session, verify=False,
        max_new_tokens=12,
    )  # fmt: skip
    assert not wrong


def test_streamers_of_rows(llama):
    asked, streamers = lengths(3), [Streamer(), None, Streamer()]
    out = eelib.generate(llama, asked, policy=eelib.FixedExit(3, 2), streamer=streamers, max_new_tokens=8)
    for number in (0, 2):
        assert streamers[number].tokens == out.rows[number].sequences[0].tolist() and streamers[number].ended == 1
    one = Streamer()
    with pytest.raises(InvalidInputError, match="1 streamers for 3 rows"):
        eelib.generate(llama, asked, policy=eelib.Never(), streamer=one)
    assert one.ended == 1


@pytest.mark.parametrize("kind", POISON)
def test_a_poisoned_row_is_named(kind):
    model = tiny_model("gpt2")  # whose positions end with its context
    prompt, options = POISON[kind]
    asked, own = lengths(3), [{}, options, {}]
    asked[1] = prompt
    with pytest.raises((EelibError, RuntimeError, IndexError)) as caught:
        eelib.generate(model, asked, heads=random_heads(model), policy=SURE, row_options=own, max_new_tokens=8)
    said = str(caught.value) + " ".join(getattr(caught.value, "__notes__", []))
    assert "ow 1" in said


def test_other_numbers_of_things_than_rows_are_refused(llama):
    for wrong in ({"seeds": [1]}, {"seeds": 3}, {"row_options": [{}]}, {"row_options": 3}, {"attention_mask": [[1]]}):
        with pytest.raises(InvalidInputError, match=r"expected (one|a)"):
            eelib.generate(llama, lengths(3), policy=eelib.Never(), max_new_tokens=2, **wrong)


ALL_POLICIES = {
    "Never": lambda depth, last: eelib.Never(),
    "FixedExit, a head": lambda depth, last: eelib.FixedExit(depth, 3),
    "FixedExit, logit lens": lambda depth, last: eelib.FixedExit(last, 4),
    "Lookup": lambda depth, last: eelib.Lookup(),
}


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_architecture_and_policy_in_batches():
    """All that decode alone, 4 policies, batches of 3, 5 and 8: other lengths, stops and rules. Writes the table."""
    table = []
    for name in NAMES:
        try:
            model = tiny_architecture(name)
            backbone = Backbone.of(model)
            depth = max(1, backbone.n_blocks // 2)
            eelib.generate(model, [5] * 17, policy=eelib.FixedExit(depth, 3), max_new_tokens=15, eos_token_id=None)
        except Exception:
            continue  # tests/decoding/test_sweep.py says why
        refusal, heads = Ragged.of(backbone).refusal, random_heads(model, (depth,))
        for (policy, make), size in [(p, n) for p in ALL_POLICIES.items() for n in (3, 5, 8)]:
            own = [{"max_new_tokens": 6 + 3 * (row % 4)} for row in range(size)]
            kwargs = {"policy": make(depth, backbone.n_blocks - 1), "eos_token_id": None, "pad_token_id": 0}
            if "lens" not in policy:
                kwargs["heads"] = heads
            wrong, out = differing(model, lengths(size, size, 17), own, GATHER[size % 4], **kwargs)
            table.append({
                "architecture": name, "policy": policy, "rows": size, "tokens": out.stats.emitted,
                "rows_that_differ": len(wrong), "shared": out.stats.shared, "why_not": refusal or "",
            })  # fmt: skip
    table = pd.DataFrame(table)
    table.to_csv(PROJECT / "docs" / "results" / "batches_architectures.csv", index=False)
    assert not table.rows_that_differ.any(), table[table.rows_that_differ > 0].to_string()
    assert table.architecture.nunique() >= 125 and table.groupby("architecture").shared.first().mean() > 0.6
