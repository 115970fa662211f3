import json

import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import after, letters, prompts, tiny_model
from transformers import AutoModelForCausalLM

import eelib
from eelib.backbone.teacher import Teacher, TeacherOutputs
from eelib.errors import CorpusError, HeadsError, InvalidInputError, TrainingError
from eelib.heads import training
from eelib.heads.lessons import Batches
from eelib.heads.loss import LIKELIEST, DistillationLoss
from eelib.heads.report import smooth_report
from eelib.workspace import read_tensors

CONFIG = eelib.TrainConfig(epochs=2, batch_size=4, learning_rate=5e-3, checkpoint_every=2, log_every=1)


@pytest.fixture(scope="module")
def text(llama):
    """Greedy text of the model's own, of different lengths."""
    return [
        llama.generate(p, do_sample=False, max_new_tokens=10 + i, eos_token_id=None)[0]
        for i, p in enumerate(prompts(14))
    ]


def heads_for(model, kind="mlp"):
    return eelib.ExitHeads.init(model, [2, 4], kind, seed=1)


@pytest.mark.parametrize("kind", ["mlp", "affine", "linear", "fused"])
@pytest.mark.parametrize("loss", ["kl", "cross_entropy"])
def test_training_brings_heads_closer_to_the_model(llama, text, kind, loss):
    heads = heads_for(llama, kind)
    before = training.evaluate_heads(llama, heads.to(llama.dtype), text)
    config = eelib.TrainConfig(epochs=12, batch_size=4, learning_rate=1e-2, loss=loss)
    report = eelib.train_heads(llama, heads, text, config, validation=text)
    after = training.evaluate_heads(llama, heads, text)
    assert (after.agreement > before.agreement).all()
    assert loss != "kl" or (after.loss < before.loss).all()
    assert heads.training_record["validation"][0]["agreement"] == after.agreement[0]
    windows = [len(t) - (config.drafts if kind == "fused" else 0) for t in text]
    assert set(report.depth) == {2, 4} and report.tokens.max() == 12 * sum(windows)
    assert next(heads.parameters()).dtype == llama.dtype and not next(heads.parameters()).requires_grad


def test_loss_is_the_mean_over_real_tokens(llama, text):
    """Padding weighs nothing: a batch of unequal rows has the token-weighted loss of its rows."""
    heads = heads_for(llama).to(llama.dtype)
    rows = [training.evaluate_heads(llama, heads, [t]).loss[0] * len(t) for t in text[:3]]
    together = training.evaluate_heads(llama, heads, text[:3]).loss[0]
    assert together == pytest.approx(sum(rows) / sum(map(len, text[:3])), rel=1e-5)


def test_kl_against_torch(llama, text):
    heads = heads_for(llama).to(llama.dtype)
    states = eelib.Backbone.of(llama).states(text[0][None], [2])
    teacher = llama(text[0][None]).logits[0].log_softmax(-1)
    student = heads.logits(2, states[2])[0].log_softmax(-1)
    expected = torch.nn.functional.kl_div(student, teacher, log_target=True, reduction="batchmean").item()
    assert training.evaluate_heads(llama, heads, text[:1]).loss[0] == pytest.approx(expected, rel=1e-4)


def test_other_carries_what_is_not_drafted(llama, text):
    heads = eelib.ExitHeads.init(llama, [2], "mlp", 20, sequences=text, tokenizer=letters())
    logits = llama(text[0][None]).logits[0]
    target = heads.teacher_probabilities(Teacher(llama, [2]).outputs(text[:1]))
    assert target.sum(-1).allclose(torch.ones(len(target)))
    inside = logits.softmax(-1)[:, heads.draft_tokens].sum(-1)
    assert target[:, -1].allclose((1 - inside).float(), atol=1e-5)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("at", [2, 3, 5])
@pytest.mark.parametrize("kept", [True, False])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(llama, text, tmp_path, monkeypatch, at, kept):
    whole, parts, checkpoint = heads_for(llama), heads_for(llama), tmp_path / "run" / "heads.safetensors"
    teacher = Teacher(llama, [2, 4], tmp_path / "teacher" if kept else None)
    report = eelib.train_heads(llama, whole, text, CONFIG, teacher=teacher)
    step = training._train_step

    def killing(heads, outputs, run, n):
        if run.step == at:
            raise KilledError
        return step(heads, outputs, run, n)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(training, "_train_step", killing)
        eelib.train_heads(llama, parts, text, CONFIG, teacher=teacher, checkpoint=checkpoint)
    assert checkpoint.is_file() and list(checkpoint.parent.iterdir()) == [checkpoint]
    parts, log, board = heads_for(llama), tmp_path / "log.jsonl", tmp_path / "board"
    resumed = eelib.train_heads(
        llama, parts, text, CONFIG, teacher=teacher, checkpoint=checkpoint, log=log, tensorboard=board
    )
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))
    assert resumed.drop(columns="tokens_per_second").equals(report.drop(columns="tokens_per_second"))
    assert not checkpoint.exists()
    logged = pd.DataFrame(map(json.loads, log.read_text().splitlines()))
    assert logged.equals(resumed), "the log of a resumed run is whole"
    events = EventAccumulator(str(board))
    events.Reload()
    steps = [event.step for event in events.Scalars("loss/depth 2")]
    assert steps == list(range(report.step.max() + 1))[-len(steps) :]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("masked", [True, False])
def test_shuffling_hands_out_every_token_once_an_epoch(llama, text, batch_size, masked):
    masks, teacher = after(5, text) if masked else None, Teacher(llama, [2, 4])
    steps = Batches(text, masks, epochs=2, batch_size=batch_size, shuffle_buffer=8, seed=0)
    given = [lesson.outputs[0] for lesson in steps.lessons(teacher)]
    assert len(given) == len(steps)
    whole = teacher.outputs(text * 2, None if masks is None else masks * 2)
    found = TeacherOutputs.concatenate(given)
    assert found.log_normaliser.sort().values.allclose(whole.log_normaliser.sort().values)
    for outputs in given[:3]:  # what belongs together stays together; either is near, to what float32 may round
        for n, row in zip(outputs.log_normaliser, outputs.states[4], strict=True):
            near = (whole.log_normaliser - n).abs() < 1e-4
            assert (whole.states[4][near] - row).abs().amax(1).min() < 1e-4
    of_one_text = len(teacher.outputs(text[:1], None if masks is None else masks[:1]).argmax)
    assert {abs(len(a.argmax) - len(b.argmax)) for a in given[:2] for b in given[:2]} <= {0, 1} and of_one_text > 1


@pytest.mark.parametrize("batch_size", [1, 4])
def test_lessons_of_fused_heads_are_drafts_in_a_row(llama, text, batch_size):
    """Every run of four positions of an answer, once an epoch: what was read at the first, then three drafts."""
    masks, teacher = after(5, text), Teacher(llama, [2])
    steps = Batches(text, masks, epochs=1, batch_size=batch_size, shuffle_buffer=8, seed=0, drafts=3)
    given, backbone = list(steps.lessons(teacher)), eelib.Backbone.of(llama)
    expected = []
    for sequence in text:
        states = backbone.states(sequence[None], [2, 6])
        final = backbone.normalise(states[6])[0]
        windows = [(final[p], *states[2][0, p + 1 : p + 4], final[p + 3]) for p in range(5, len(sequence) - 3)]
        expected += [torch.cat(window) for window in windows]
    found = [
        torch.cat([lesson.previous, *(outputs.states[2] for outputs in lesson.outputs), lesson.outputs[2].final], dim=1)
        for lesson in given
    ]
    expected, found = torch.stack(expected), torch.cat(found)
    assert expected.shape == found.shape
    near = torch.cdist(expected, found) < 1e-3
    assert near.any(0).all() and near.any(1).all()


def test_fused_heads_learn_their_later_drafts_too(llama, text):
    """Trained on three drafts in a row, the third is better than when only the first was trained."""
    agreement = []
    for drafts in (1, 3):
        heads = heads_for(llama, "fused")
        config = eelib.TrainConfig(epochs=20, batch_size=2, learning_rate=1e-2, drafts=drafts)
        eelib.train_heads(llama, heads, text, config)
        agreement.append(eelib.record_traces(llama, heads, text, draft=3).query("position > 4").agrees.mean())
    assert agreement[1] > agreement[0]


def test_a_buffer_of_one_step_changes_nothing(llama, text):
    heads = [heads_for(llama), heads_for(llama)]
    reports = [
        eelib.train_heads(llama, h, text, eelib.TrainConfig(epochs=1, batch_size=4, shuffle_buffer=b, log_every=1))
        for h, b in zip(heads, (1, 4), strict=True)
    ]
    assert reports[0].loss.equals(reports[1].loss) and reports[0].tokens.equals(reports[1].tokens)


def test_a_backbone_that_does_not_fit_teaches_from_where_it_lies(llama, text, tmp_path):
    """Half of the blocks on the disk, fetched one by one as transformers' device_map has it."""
    llama.save_pretrained(tmp_path / "model")
    n = llama.config.num_hidden_layers
    places = {f"model.layers.{i}": "cpu" if i < n // 2 else "disk" for i in range(n)}
    places |= dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    settings = {"device_map": places, "offload_folder": tmp_path / "off", "dtype": llama.dtype}
    spread = AutoModelForCausalLM.from_pretrained(tmp_path / "model", **settings).eval().requires_grad_(False)
    assert any(p.device.type == "meta" for p in spread.parameters())
    heads = [heads_for(model) for model in (llama, spread)]
    for model, own in zip((llama, spread), heads, strict=True):
        eelib.train_heads(model, own, text, eelib.TrainConfig(epochs=1))
    for one, other in zip(heads[0].state_dict().values(), heads[1].state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)  # a step moves them by 3e-3
    heads[1].save_pretrained(tmp_path / "heads")
    eelib.ExitHeads.from_pretrained(tmp_path / "heads", llama)  # the same backbone, wherever its weights lie


def test_a_full_disk_stops_training_and_keeps_the_last_checkpoint(llama, text, tmp_path, monkeypatch):
    checkpoint, save, saved = tmp_path / "heads.safetensors", training.write_tensors, []

    def filling(path, tensors, about):
        if saved:
            raise OSError(28, "No space left on device")
        saved.append(save(path, tensors, about))

    monkeypatch.setattr(training, "write_tensors", filling)
    with pytest.raises(TrainingError, match=r"checkpoint of step 4 cannot be written .*No space left"):
        eelib.train_heads(llama, heads_for(llama), text, CONFIG, checkpoint=checkpoint)
    assert read_tensors(checkpoint)[1]["step"] == 2
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_only_what_counts_is_learned_from(llama, text):
    masks = after(7, text)
    report = eelib.train_heads(llama, heads_for(llama), text, CONFIG, loss_mask=masks)
    assert report.tokens.max() == 2 * sum(int(mask.sum()) for mask in masks)
    answers = [own[7:] for own in text]
    assert len(Teacher(llama, [2]).outputs(text, masks).argmax) == sum(map(len, answers))


def test_a_checkpoint_of_another_run_is_refused(llama, text, tmp_path, monkeypatch):
    checkpoint, step = tmp_path / "heads.safetensors", training._train_step

    def killing(heads, outputs, run, n):
        if run.step == 3:
            raise KilledError
        return step(heads, outputs, run, n)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(training, "_train_step", killing)
        eelib.train_heads(llama, heads_for(llama), text, CONFIG, checkpoint=checkpoint)
    with pytest.raises(TrainingError, match="another run"):
        eelib.train_heads(llama, heads_for(llama), text[:-1], CONFIG, checkpoint=checkpoint)
    assert checkpoint.is_file()


def test_a_loss_that_is_no_number_stops_training(text):
    model = tiny_model("llama", torch.float32)
    heads = heads_for(model)
    heads.maps["4"].down.weight.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="depth 4 is nan at step 1"):
        eelib.train_heads(model, heads, text, CONFIG)


def test_a_step_without_a_position_that_counts_teaches_nothing(llama, text):
    masks = [torch.ones(len(t), dtype=torch.bool) for t in text[:3]]
    masks[1][:] = False
    config = eelib.TrainConfig(epochs=1, batch_size=1, shuffle_buffer=1, log_every=1)
    report = eelib.train_heads(llama, heads_for(llama), text[:3], config, loss_mask=masks)
    assert report.tokens.max() == len(text[0]) + len(text[2]) and report.loss.notna().all()
    assert (report.groupby("step").loss.sum() == 0).sum() == 1


def test_nothing_to_train(llama, text):
    with pytest.raises(CorpusError, match="empty"):
        eelib.train_heads(llama, heads_for(llama), [], CONFIG)
    with pytest.raises(CorpusError, match="no position through"):
        eelib.train_heads(llama, heads_for(llama), text, CONFIG, loss_mask=[torch.zeros(len(t)).bool() for t in text])
    with pytest.raises(HeadsError, match="nothing to train"):
        eelib.train_heads(llama, heads_for(llama, "none"), text, CONFIG)
    for wrong in ({"loss": "mse"}, {"epochs": 0}, {"learning_rate": -1.0}, {"warmup": 1.0}):
        with pytest.raises(InvalidInputError):
            eelib.TrainConfig(**wrong)


@pytest.mark.parametrize("draft", [20, None])
def test_a_loss_over_sampled_classes_estimates_the_whole(llama, text, draft):
    heads = eelib.ExitHeads.init(llama, [2, 4], "mlp", draft, sequences=text, tokenizer=letters())
    outputs, classes = Teacher(llama, [2, 4]).outputs(text), (draft or llama.config.vocab_size) + (draft is not None)
    whole, agreed, _ = DistillationLoss(heads, outputs).of_head(2)
    everything, same, _ = DistillationLoss(heads, outputs, sampled_classes=classes).of_head(2)
    assert everything.item() == pytest.approx(whole.item(), rel=1e-5) and same == agreed
    few = outputs.select(torch.tensor([3]))  # eight likeliest and some of the rest
    whole = DistillationLoss(heads, few).of_head(2)[0].item()
    drawn = [DistillationLoss(heads, few, sampled_classes=6, seed=seed) for seed in range(400)]
    assert all(len(o.target[0]) == LIKELIEST + 6 + (draft is not None) for o in drawn)
    losses = torch.stack([o.of_head(2)[0] for o in drawn])
    assert losses.std() > 0 and losses.mean().item() == pytest.approx(
        whole, rel=0.2
    )  # low by a little: a logarithm of a mean
    assert DistillationLoss(heads, few, sampled_classes=6, seed=1).of_head(2)[0] == losses[1]
    assert DistillationLoss(heads, few, sampled_classes=6).of_head(2, agreement=False)[1].isnan()


def test_training_by_sampled_classes(llama, text):
    config = eelib.TrainConfig(epochs=12, batch_size=4, learning_rate=1e-2, sampled_classes=4)
    heads = [heads_for(llama), heads_for(llama)]
    before = training.evaluate_heads(llama, heads[0].to(llama.dtype), text)
    reports = [eelib.train_heads(llama, h, text, config) for h in heads]
    after = training.evaluate_heads(llama, heads[0], text)
    assert (after.agreement > before.agreement).all() and (after.loss < before.loss).all()
    assert reports[0].loss.equals(reports[1].loss) and not reports[0].agreement.isna().any()
    with pytest.raises(InvalidInputError, match="sampled_classes=0"):
        eelib.TrainConfig(sampled_classes=0)


def test_a_smoothed_report_by_hand():
    """The mean of each depth's last two rows; of the first one alone."""
    report = pd.DataFrame(
        {"step": [1, 1, 2, 2, 3, 3], "depth": [2, 4] * 3, "loss": [4, 1, 2, 1, 1, 1.0], "agreement": 0.5}
    )
    smooth = smooth_report(report, rows=2)
    assert smooth.loss.tolist() == [4, 1, 3, 1, 1.5, 1] and smooth.agreement.eq(0.5).all()
    assert smooth.drop(columns="loss").equals(report.drop(columns="loss")), "columns and their order stay"
