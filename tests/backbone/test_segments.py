import copy
import gc
import weakref

import pytest
import torch
from architectures import tiny_architecture
from tiny import N_BLOCKS, closeness, prompts, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from eelib.backbone.segments import Backbone, pad
from eelib.errors import InvalidInputError, ModelError


def test_blocks_run_one_by_one_give_the_models_logits(model):
    backbone, prompt = Backbone.of(model), prompts(1)[0]
    span = backbone.capture(prompt)
    hidden = span.hidden
    for block in range(N_BLOCKS):
        hidden = backbone.run(block, block + 1, hidden, span)
    torch.testing.assert_close(backbone.unembed(hidden), model(prompt).logits, **closeness(model))


def test_states_are_transformers_hidden_states(model):
    prompt = prompts(1)[0]
    theirs = model(prompt, output_hidden_states=True).hidden_states
    ours = Backbone.of(model).states(prompt, [1, 4])
    for depth in (1, 4):
        torch.testing.assert_close(ours[depth], theirs[depth], **closeness(model))


def test_probing_and_running_leave_the_model_as_it_was():
    model = tiny_model("llama", seed=5)
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    backbone = Backbone(model)
    backbone.states(prompts(1)[0], [2, N_BLOCKS])
    assert dict(model.named_modules()) == modules
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_backbone_is_probed_once_and_forgotten_with_its_model():
    model = tiny_model("llama", seed=6)
    assert Backbone.of(model) is Backbone.of(model)
    backbone, forgotten = weakref.ref(Backbone.of(model)), weakref.ref(model)
    del model
    gc.collect()  # whatever holds itself in a ring
    assert backbone() is None and forgotten() is None


def test_a_model_whose_parts_do_not_add_up_is_refused():
    model = tiny_model("llama", seed=7)
    forward = model.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    model.forward = scaled
    with pytest.raises(ModelError, match="differ by"):
        Backbone(model)


def test_a_model_without_one_block_list_is_refused():
    model = tiny_model("llama", seed=8)
    model.config.num_hidden_layers = 5
    with pytest.raises(ModelError, match="one list of 5 blocks"):
        Backbone(model)


def test_a_model_with_a_recurrent_state_is_refused():
    config = AutoConfig.for_model("mamba", vocab_size=97, hidden_size=32, num_hidden_layers=3, state_size=4)
    with pytest.raises(ModelError, match="cannot be rolled back"):
        Backbone(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("depths", [[], [0, 2], [2, 1], [2, 2], [3, N_BLOCKS], [True]])
def test_depths_out_of_order_or_range(llama, depths):
    with pytest.raises(InvalidInputError, match="depths="):
        Backbone.of(llama).check_depths(depths)


def test_a_number_of_depths_spreads_them_evenly(llama):
    assert Backbone.of(llama).check_depths(4) == (1, 2, 4, 5)


def test_fingerprint_tells_models_apart_but_not_types():
    model = tiny_model("llama", torch.bfloat16)
    same, other = copy.deepcopy(model).float(), tiny_model("llama", torch.bfloat16, seed=9)
    prints = [Backbone.of(m).fingerprint() for m in (model, same, other)]
    assert prints[0] == prints[1] != prints[2]
    model.lm_head.weight.data[3, 4] += 1
    assert Backbone.of(model).fingerprint() != prints[0]


def test_padding_marks_what_counts():
    tokens, counts = pad([torch.tensor([5, 6, 7]), torch.tensor([8])])
    assert tokens.tolist() == [[5, 6, 7], [8, 0, 0]] and counts.sum(1).tolist() == [3, 1]
    masks = [torch.tensor([False, True, True]), torch.tensor([True])]
    assert pad([torch.tensor([5, 6, 7]), torch.tensor([8])], masks)[1].tolist() == [
        [False, True, True],
        [True, False, False],
    ]


@pytest.mark.parametrize("padding", [0, 1])
def test_positions_are_those_that_generate_hands_out(padding):
    """RoBERTa by itself counts from padding's id on, and not what is padding."""
    model = tiny_architecture("roberta")
    model.config.pad_token_id = padding
    model = type(model)(model.config).double().eval()
    text = torch.tensor([[5, 6, 0, 1, 7, 8, 1, 9]])
    numbers = torch.arange(8)[None]
    own = model(text, position_ids=numbers).logits
    backbone = Backbone.of(model)
    assert not torch.allclose(own, model(text).logits)
    torch.testing.assert_close(backbone.unembed(backbone.states(text, [backbone.n_blocks])[backbone.n_blocks]), own)
    span = backbone.capture(text[:, 3:], 3)
    torch.testing.assert_close(span.hidden, backbone.capture(text).hidden[:, 3:])
