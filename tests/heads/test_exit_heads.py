import json

import pytest
import torch
from tiny import N_BLOCKS, VOCAB_SIZE, closeness, letters, prompts, tiny_model

import eelib
from eelib.backbone.segments import Backbone
from eelib.errors import HeadsError, InvalidInputError
from eelib.heads.exit_heads import frequent_tokens


@pytest.fixture(scope="module")
def text():
    return [p[0] for p in prompts(20, 30)]


def drafting(model, text, kind="mlp", size=20):
    return eelib.ExitHeads.init(model, [2, 4], kind, size, sequences=text, tokenizer=letters())


@pytest.mark.parametrize("kind", ["mlp", "affine", "none"])
def test_untrained_heads_are_the_logit_lens(model, kind):
    heads, prompt = eelib.ExitHeads.init(model, [2, 4], kind).to(model.dtype), prompts(1)[0]
    state = Backbone.of(model).states(prompt, [2])[2]
    torch.testing.assert_close(heads.logits(2, state), Backbone.of(model).unembed(state), **closeness(model))


def test_draft_vocabulary(model, text):
    heads = drafting(model, text).to(model.dtype)
    state = Backbone.of(model).states(prompts(1)[0], [2])[2]
    logits = heads.logits(2, state)
    assert logits.shape[-1] == 21 and set(range(3)) <= set(heads.draft_tokens.tolist())
    full = Backbone.of(model).unembed(state)
    torch.testing.assert_close(logits[..., :-1], full[..., heads.draft_tokens], **closeness(model))
    torch.testing.assert_close(heads.full_logits(2, state), full, **closeness(model))
    wide = heads.widen(logits)
    assert wide.shape[-1] == VOCAB_SIZE and wide.isfinite().sum() == 20 * logits.shape[1]
    other = torch.zeros(1, 21)
    other[0, -1] = 1
    assert heads.drafted_tokens(other).item() == -1
    other[0, 7] = 2
    assert heads.drafted_tokens(other).item() == heads.draft_tokens[7]


def test_heads_with_a_draft_vocabulary_decode_losslessly(model, text):
    heads = drafting(model, text, "affine", 60).to(model.dtype)
    for parameter in heads.parameters():
        parameter.data.normal_(0, 0.3)
    policy = eelib.Confidence("max_prob", (0.1, 0.1))
    for prompt in prompts(3):
        for kwargs in ({}, {"repetition_penalty": 1.5}):
            out = eelib.generate(model, prompt, heads=heads, policy=policy, max_new_tokens=30, **kwargs)
            assert torch.equal(out.sequences, model.generate(prompt, do_sample=False, max_new_tokens=30, **kwargs))
            assert out.stats.drafted > 0


def test_frequent_tokens_come_first_ties_by_number(llama):
    text = [torch.tensor([50, 50, 50, 40, 40, 60, 30])]
    assert frequent_tokens(text, 6, llama, letters()).tolist() == [0, 1, 2, 30, 40, 50]


@pytest.mark.parametrize("kind", ["mlp", "affine", "linear", "fused"])
def test_saved_and_loaded(model, tmp_path, kind):
    heads = eelib.ExitHeads.init(model, [2, 4], kind, seed=3).to(model.dtype)
    heads.save_pretrained(tmp_path)
    loaded = eelib.ExitHeads.from_pretrained(tmp_path, model)
    state = Backbone.of(model).states(prompts(1)[0], [4])[4]
    previous = torch.randn(1, 7, 32, dtype=model.dtype)
    assert torch.equal(heads.logits(4, state, previous), loaded.logits(4, state, previous))
    assert loaded.config == heads.config and not any(p.requires_grad for p in loaded.parameters())
    described = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert {"backbone", "revision", "fingerprint", "heads", "training", "eelib_version"} <= set(described)
    assert "Early-exit heads" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", "config.json", "README.md", "provenance"}


def test_heads_of_another_backbone_are_refused_unless_forced(tmp_path):
    eelib.ExitHeads.init(tiny_model("llama"), [2, 4]).save_pretrained(tmp_path)
    other = tiny_model("llama", seed=11)
    with pytest.raises(HeadsError, match="another backbone"):
        eelib.ExitHeads.from_pretrained(tmp_path, other)
    assert eelib.ExitHeads.from_pretrained(tmp_path, other, force=True).depths == (2, 4)


def test_a_folder_without_heads(llama, tmp_path):
    with pytest.raises(HeadsError, match=r"config\.json and model\.safetensors missing"):
        eelib.ExitHeads.from_pretrained(tmp_path, llama)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(HeadsError, match="does not describe heads"):
        eelib.ExitHeads.from_pretrained(tmp_path, llama)


def test_parameters_count_the_copied_rows(llama, text):
    heads = drafting(llama, text)
    count = heads.parameter_count()
    assert count["trained"] == 2 * (4 * 32 * 32 + 2 * 32 + 33) and count["own"] == count["trained"] + 20 * 32


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "cubic"},
        {"depths": [4, 2]},
        {"depths": [2, N_BLOCKS]},
        {"draft_vocab_size": 1},
        {"draft_vocab_size": 20, "kind": "linear"},
        {"draft_vocab_size": 20},
        {"width": 0},
    ],
)
def test_settings_that_no_heads_can_have(llama, settings):
    with pytest.raises(InvalidInputError):
        eelib.ExitHeads.init(llama, **{"depths": [2, 4], **settings})


def test_folders_are_named_as_in_a_shell(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    heads = eelib.ExitHeads.init(llama, [2], "affine")
    heads.save_pretrained("$SCRATCH/mine")
    assert (tmp_path / "mine" / "config.json").is_file()
    assert eelib.ExitHeads.from_pretrained("$SCRATCH/mine", llama).depths == (2,)
