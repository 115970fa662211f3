import shutil
from collections import namedtuple

import pytest
import torch
from tiny import after, prompts, tiny_model

import eelib
from eelib.backbone.teacher import Teacher
from eelib.errors import TeacherError

TEXTS = [p[0] for p in prompts(5, length=12)]
MASKS = after(4, TEXTS)


def test_a_lesson_is_what_the_model_says(model):
    outputs = Teacher(model, [2, 4]).outputs(TEXTS, MASKS)
    logits = torch.cat([model(text[None]).logits[0, 4:] for text in TEXTS])
    assert outputs.argmax.equal(logits.argmax(-1)) and outputs.log_normaliser.allclose(logits.logsumexp(-1).float())
    states = eelib.Backbone.of(model).states(torch.stack(TEXTS), [2])
    assert outputs.states[2].allclose(states[2][:, 4:].flatten(0, 1))
    heads = eelib.ExitHeads.init(model, [2, 4], "affine")
    assert heads.teacher_probabilities(outputs).allclose(logits.softmax(-1).float(), atol=1e-5)


def test_kept_lessons_are_read_not_computed(llama, tmp_path, monkeypatch, capsys):
    teacher = Teacher(llama, [2, 4], tmp_path)
    teacher.cache(TEXTS[:3], MASKS[:3])
    assert "24 tokens at 2 depths" in capsys.readouterr().out
    assert len(list(teacher.folder.iterdir())) == 3
    size = sum(file.stat().st_size for file in teacher.folder.iterdir())
    assert size == pytest.approx(24 * teacher.bytes_per_token, rel=0.15)  # files have headers
    asked, teach = [], Teacher._compute
    monkeypatch.setattr(Teacher, "_compute", lambda self, s, m: asked.append(len(s)) or teach(self, s, m))
    kept = teacher.outputs(TEXTS[:4], MASKS[:4])
    assert asked == [1], "only the fourth was not kept"
    fresh = Teacher(llama, [2, 4]).outputs(TEXTS[:4], MASKS[:4])
    assert kept.argmax.equal(fresh.argmax) and kept.final.allclose(fresh.final)
    assert kept.states[4].dtype == fresh.states[4].dtype
    assert kept.states[4].allclose(fresh.states[4], rtol=2**-8)  # kept in bfloat16: half a unit of its last place
    teacher.cache(TEXTS[:4], MASKS[:4])
    assert len(asked) == 2 and capsys.readouterr().out == "", "nothing is missing, so nothing is announced"
    teacher.clear_cache()
    assert not teacher.folder.exists()


def test_lessons_of_another_model_or_mask_are_not_taken(llama, tmp_path):
    folders = {Teacher(m, d, tmp_path).folder for m in (llama, tiny_model("llama", seed=1)) for d in ([2], [2, 4])}
    assert len(folders) == 4
    teacher = Teacher(llama, [2], tmp_path)
    assert len(teacher.outputs(TEXTS[:1], MASKS[:1]).argmax) == 8 and len(teacher.outputs(TEXTS[:1]).argmax) == 12


def test_no_room_is_said_before_anything_is_computed(llama, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**6, 10**6 - 100, 100))
    with pytest.raises(TeacherError, match=r"take up to .* GB in .* 0.00 GB are free"):
        Teacher(llama, [2, 4], tmp_path).cache(TEXTS, MASKS)
