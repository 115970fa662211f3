import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import N_BLOCKS, after, prompts, tiny_model
from torch.nn import functional as F

import eelib
from eelib.baselines import layerskip
from eelib.errors import CorpusError, InvalidInputError, TrainingError

IN_FLOAT32 = 1e-5
"""Losses are summed in float32, a few dozen terms each: some tens of its roundings, relative."""
CONFIG = eelib.baselines.LayerSkipConfig(steps=6, batch_size=2, learning_rate=1e-3, rotation=2)
PLAIN = replace(CONFIG, p_max=0, e_scale=0, warmup=0)


@pytest.fixture(scope="module")
def text():
    """A tiny text that repeats, so that a few steps learn something of it, in sequences of two lengths."""
    words = torch.tensor([5, 9, 33, 12, 60, 7])
    return [words.repeat(3)[i : i + 12 + i % 2] for i in range(6)]


@pytest.fixture
def weighty(model):
    """The session's model and the bits of its weights, which must be the same afterwards."""
    before = copy.deepcopy(model.state_dict())
    yield model
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())


def weights(model):
    return torch.cat([p.flatten().double() for p in model.parameters()])


def test_dropout_rates_are_the_papers():
    rates = layerskip.dropout_rates(replace(CONFIG, p_max=0.2), 5, step=3)
    assert rates == pytest.approx([0.2 * (math.exp(i * math.log(2) / 4) - 1) for i in range(5)])
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.2)
    growing = replace(CONFIG, p_max=0.2, from_scratch=True, steps=11)
    assert layerskip.dropout_rates(growing, 5, step=0).max() == 0
    assert layerskip.dropout_rates(growing, 5, step=5)[-1] == pytest.approx(0.2 * (math.exp(math.log(2) / 2) - 1))
    assert layerskip.dropout_rates(growing, 5, step=10) == pytest.approx(rates)


def test_loss_scales_are_the_papers():
    assert list(layerskip.loss_scales(5, e_scale=1.0)) == [0, 1, 3, 6, 4 + 6]
    assert layerskip.loss_scales(5, e_scale=0.5) == pytest.approx([0, 0.5, 1.5, 3, 4 + 3])
    assert list(layerskip.loss_scales(5, e_scale=0)) == [0, 0, 0, 0, 4]


def test_rotational_curriculum_moves_on_by_one_block_a_step():
    config = replace(CONFIG, rotation=3)
    active = [np.flatnonzero(layerskip.active_exits(config, 7, step)).tolist() for step in range(4)]
    assert active == [[0, 3, 6], [1, 4, 6], [2, 5, 6], [0, 3, 6]]


def test_gradual_curriculum_goes_down_and_has_all_after_half_the_steps():
    config = replace(CONFIG, curriculum="gradual", steps=16)
    active = [np.flatnonzero(layerskip.active_exits(config, 4, step)).tolist() for step in (0, 1, 2, 4, 6, 15)]
    assert active == [[3], [3], [2, 3], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize("curriculum", layerskip.CURRICULA)
@pytest.mark.parametrize("e_scale", [0, 0.2, 1])
def test_loss_weights_are_shares(curriculum, e_scale):
    config = replace(CONFIG, curriculum=curriculum, e_scale=e_scale, steps=20)
    for step in range(20):
        shares = layerskip.loss_weights(config, 6, step)
        assert shares.sum() == pytest.approx(1) and (shares >= 0).all() and shares[-1] > 0
        assert not shares[~layerskip.active_exits(config, 6, step)].any()
    by_hand = layerskip.loss_weights(replace(CONFIG, e_scale=1.0, rotation=3), 7, step=1)
    assert by_hand == pytest.approx(np.array([0, 1, 0, 0, 10, 0, 21]) / 32)  # 6 + (0 + ... + 5) = 21


def test_without_dropout_and_exits_it_is_plain_fine_tuning(weighty, text):
    loss_mask = after(3, text)
    tuned, report = layerskip.finetune(weighty, text, PLAIN, loss_mask=loss_mask)
    plain, losses = copy.deepcopy(weighty).requires_grad_(True), []
    optimizer = torch.optim.AdamW(plain.parameters(), lr=PLAIN.learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(PLAIN.seed)
    order = torch.cat([torch.randperm(6, generator=generator) for _ in range(2)])
    for step in range(PLAIN.steps):
        for group in optimizer.param_groups:
            group["lr"] = PLAIN.learning_rate * 0.5 * (1 + math.cos(math.pi * step / PLAIN.steps))
        batch = [text[i] for i in order[2 * step : 2 * step + 2]]
        nats = [
            F.cross_entropy(plain(input_ids=t[None]).logits[0, 3:-1].float(), t[4:], reduction="sum") for t in batch
        ]
        loss = sum(nats) / sum(len(t) - 4 for t in batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), PLAIN.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert set(report.depth) == {N_BLOCKS} and report.loss.to_numpy() == pytest.approx(losses, rel=IN_FLOAT32)
    assert torch.allclose(weights(tuned), weights(plain), rtol=0, atol=1e-5)  # a hundredth of one step's length
    assert (weights(tuned) - weights(weighty)).abs().max() > 1e-3


def test_every_weight_learns(model, text):
    tuned, _ = layerskip.finetune(model, text, PLAIN)
    same = [n for n, p in tuned.named_parameters() if torch.equal(p, model.get_parameter(n))]
    assert same == []  # the embedding too, which no gradient passes on to by the exits


@pytest.mark.parametrize("curriculum", layerskip.CURRICULA)
def test_exits_learn_and_the_original_does_not_change(weighty, text, curriculum):
    config = replace(CONFIG, steps=40, learning_rate=1e-2, e_scale=1.0, p_max=0.1, curriculum=curriculum)
    tuned, report = layerskip.finetune(weighty, text, config)
    found = [layerskip.read_exits(m, text).groupby("depth").nats.sum() for m in (weighty, tuned)]
    assert (found[1][2:] < 0.5 * found[0][2:]).all()  # that at depth 1 has no loss of its own
    assert report.groupby("step").weight.sum().to_numpy() == pytest.approx(np.ones(40))
    assert not any(p.requires_grad for p in tuned.parameters()) and tuned.dtype == weighty.dtype


def test_a_run_is_fixed_by_its_seed(model, text, tmp_path):
    config = replace(CONFIG, p_max=0.5)
    (one, report), (two, again), (other, _) = (
        layerskip.finetune(model, text, c, log=tmp_path / "log") for c in (config, config, replace(config, seed=1))
    )
    assert torch.equal(weights(one), weights(two)) and not torch.equal(weights(one), weights(other))
    assert report.drop(columns="tokens_per_second").equals(again.drop(columns="tokens_per_second"))
    assert len((tmp_path / "log").read_text().splitlines()) == len(report)
    assert json.loads((tmp_path / "log").read_text().splitlines()[0])["step"] == 1


def test_blocks_left_out_are_passed_by(model, text):
    backbone, tokens = eelib.Backbone.of(model), torch.stack(text[::2])
    everything, kept = (torch.arange(12) < 11).expand(3, -1), torch.ones(N_BLOCKS, 3, dtype=torch.bool)
    kept[3:, 1] = False  # the second sequence leaves after three blocks
    shares = np.eye(N_BLOCKS)[-1]
    found = layerskip.exit_losses(backbone, tokens[1:2], everything[1:2], shares, kept[:, 1:2])[N_BLOCKS]
    logits = backbone.unembed(backbone.states(tokens[1:2], [3])[3])
    assert found.item() == pytest.approx(F.cross_entropy(logits[0, :-1].float(), tokens[1, 1:]).item(), rel=IN_FLOAT32)
    together = layerskip.exit_losses(backbone, tokens, everything, shares, kept)[N_BLOCKS]
    alone = [
        layerskip.exit_losses(backbone, tokens[i : i + 1], everything[i : i + 1], shares, kept[:, i : i + 1])[N_BLOCKS]
        for i in range(3)
    ]
    assert together.item() == pytest.approx(sum(x.item() for x in alone) / 3, rel=IN_FLOAT32)


def test_only_counted_positions_contribute(model, text):
    changed = [torch.cat([t[:8], t[8:].flip(0)]) for t in text]
    until = [torch.arange(len(t)) < 7 for t in text]  # the last target is token 7
    first, second = (layerskip.finetune(model, t, CONFIG, loss_mask=until)[0] for t in (text, changed))
    assert torch.equal(weights(first), weights(second))


def test_reading_exits(model, text):
    loss_mask = after(4, text)
    table = layerskip.read_exits(model, text, loss_mask=loss_mask, batch_size=4)
    assert table.groupby("depth").tokens.sum().eq(sum(len(t) - 5 for t in text)).all()
    last = table[table.depth == N_BLOCKS]
    assert last.agreed.eq(last.tokens).all()
    own = [model(input_ids=t[None]).logits[0] for t in text]
    nats = [F.cross_entropy(x[4:-1].float(), t[5:], reduction="sum").item() for x, t in zip(own, text, strict=True)]
    assert last.nats.to_numpy() == pytest.approx(nats, rel=IN_FLOAT32)
    lens = eelib.ExitHeads.init(model, [2, 4], "none")
    traces = eelib.record_traces(model, lens, [t[:-1] for t in text], loss_mask=[c[:-1] for c in loss_mask])
    found = table[table.depth.isin([2, 4])].groupby("depth").agreed.sum()
    assert found.to_dict() == traces.groupby("depth").agrees.sum().to_dict()
    assert set(layerskip.read_exits(model, text, depths=[3]).depth) == {3}


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bloom"])
def test_other_architectures(family, text):
    tuned, report = layerskip.finetune(tiny_model(family, torch.float32), text, replace(CONFIG, p_max=0.4))
    assert np.isfinite(report.loss).all() and eelib.Backbone.of(tuned).n_blocks == N_BLOCKS


def test_a_tuned_copy_decodes_losslessly_by_its_own_exits(model, text):
    tuned, _ = layerskip.finetune(model, text, CONFIG)
    prompt = prompts(1)[0]
    out = eelib.generate(tuned, prompt, policy=eelib.FixedExit(3, 4), max_new_tokens=12, eos_token_id=None)
    own = tuned.generate(prompt, do_sample=False, max_new_tokens=12, eos_token_id=None)
    assert torch.equal(out.sequences, own) and out.stats.drafted > 0


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("steps", 0), ("steps", 1.5), ("batch_size", 0), ("rotation", 0), ("rotation", True), ("learning_rate", 0.0),
        ("learning_rate", float("nan")), ("max_grad_norm", -1.0), ("warmup", 1.0), ("p_max", 1.0), ("p_max", -0.1),
        ("e_scale", 1.1), ("e_scale", float("nan")), ("curriculum", "random"),
    ],
)  # fmt: skip
def test_bad_settings(setting, value):
    with pytest.raises(InvalidInputError, match=setting if setting != "curriculum" else "'random'"):
        replace(CONFIG, **{setting: value})


def test_nothing_to_learn_from(model, text):
    with pytest.raises(CorpusError, match="Nothing to learn from in 0 sequences"):
        layerskip.finetune(model, [], CONFIG)
    last = [torch.arange(len(t)) == len(t) - 1 for t in text]
    with pytest.raises(CorpusError, match="no position that counts has a next"):
        layerskip.finetune(model, text, CONFIG, loss_mask=last)
    with pytest.raises(CorpusError, match="No sequences"):
        layerskip.read_exits(model, [])


def test_a_loss_that_is_no_number_ends_the_run(weighty, text):
    with pytest.raises(TrainingError, match=r"at step \d+.*The original model is unchanged; lower learning_rate"):
        layerskip.finetune(weighty, text, replace(CONFIG, steps=20, learning_rate=1e200))
