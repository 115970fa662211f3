"""The engine on every architecture that it is meant for, and on one that nobody named."""

import pytest
import torch
from tiny import FAMILIES, N_BLOCKS, Pattern, closeness, own_text, prompts, random_heads, tiny_model
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

import eelib
from eelib.backbone.kv_cache import KVCache
from eelib.backbone.segments import Backbone


@pytest.fixture(scope="module", params=FAMILIES)
def family_model(request):
    return tiny_model(request.param)


POLICIES = (
    eelib.Confidence("max_prob", (0.25, 0.25, 0.25), back_off=False),
    eelib.FixedExit(3, 4),
    Pattern((5, 1, 3, None, 1, 5, 3)),
)


def test_output_is_the_models_own(family_model):
    """With a text much longer than the sliding windows."""
    drafted = accepted = 0
    heads = random_heads(family_model)
    for policy, prompt in zip(POLICIES, prompts(len(POLICIES), length=9), strict=True):
        out = eelib.generate(family_model, prompt, heads=heads, policy=policy, max_new_tokens=40)
        assert torch.equal(out.sequences, own_text(family_model, prompt, max_new_tokens=40))
        assert min(out.stats.block_positions) == max(out.stats.block_positions)
        drafted, accepted = drafted + out.stats.drafted, accepted + out.stats.accepted
    assert accepted < drafted, "nothing was ever rejected, so nothing was tested"


def test_unembedding_any_state_is_the_models_own_code(family_model):
    """Final norm, projection, scaling, soft-capping: also of states that no block made, in any shape."""
    backbone = Backbone.of(family_model)
    text = prompts(1, 12)[0]
    with torch.no_grad():
        logits = family_model(text).logits
    last = backbone.states(text, [N_BLOCKS])[N_BLOCKS]
    torch.testing.assert_close(backbone.unembed(last), logits, **closeness(family_model))
    torch.testing.assert_close(backbone.unembed(last[0, 3]), logits[0, 3], **closeness(family_model))
    torch.testing.assert_close(
        backbone.unembed(last.reshape(2, 6, 1, -1)).flatten(0, 2), logits[0], **closeness(family_model)
    )


def test_draft_vocabulary_is_a_part_of_the_whole(family_model):
    tokens = torch.arange(0, 60, 3)
    config = eelib.HeadConfig((2,), "affine", draft_vocab_size=len(tokens))
    heads = eelib.ExitHeads(config, family_model, tokens).to(torch.float64)
    state = Backbone.of(family_model).states(prompts(1)[0], [2])[2]
    drafted = heads.logits(2, state)
    torch.testing.assert_close(drafted[..., :-1], heads.full_logits(2, state)[..., tokens], **closeness(family_model))


def test_early_exit_fills_every_state_exactly(family_model, monkeypatch):
    """All keys, values and the last logits equal those of one teacher-forced pass over the emitted text."""
    sessions = []
    decode = eelib.decoding.session.Session.decode

    def keep(session, *args):
        sessions.append(session)
        return decode(session, *args)

    monkeypatch.setattr(eelib.decoding.session.Session, "decode", keep)
    heads = random_heads(family_model)
    out = eelib.generate(
        family_model,
        prompts(1, 9)[0],
        heads=heads,
        policy=POLICIES[2],
        verify=False,
        max_new_tokens=40,
        eos_token_id=None,
    )
    assert set(out.trace.depth) == {1, 3, 5, N_BLOCKS}
    frontier = sessions[0].frontier
    last = frontier.unembed(frontier.complete())[0, -1]
    text, cache = out.sequences[:, :-1], KVCache(family_model.config, 64)
    forced = family_model(text, past_key_values=cache).logits[0, -1]
    torch.testing.assert_close(last, forced, **closeness(family_model))
    for ours, theirs in zip(frontier.cache.layers, cache.layers, strict=True):
        length = text.shape[1]
        assert ours.length == theirs.length == length
        for kind in ("keys", "values"):
            a, b = getattr(ours, kind)[:, :, :length], getattr(theirs, kind)[:, :, :length]
            torch.testing.assert_close(a, b, **closeness(family_model))


def test_left_padding_changes_nothing(family_model):
    prompt = prompts(1, 6)[0]
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), prompt], dim=1)
    mask = (torch.arange(10) >= 4).long()[None]
    heads = random_heads(family_model)
    out = eelib.generate(family_model, padded, heads=heads, policy=POLICIES[2], attention_mask=mask, max_new_tokens=20)
    own = own_text(family_model, prompt, max_new_tokens=20)
    assert torch.equal(out.sequences[:, 4:], own) and torch.equal(out.sequences[:, :10], padded)
    with torch.no_grad():
        healthy = family_model(padded, attention_mask=mask).logits.isfinite().all()
    if healthy:  # transformers' eager attention makes NaN of rows that see nothing, and then emits padding
        assert torch.equal(out.sequences, own_text(family_model, padded, attention_mask=mask, max_new_tokens=20))
    assert out.stats.block_positions[0] < out.sequences.shape[1] - 4 + out.stats.drafted - out.stats.accepted


class OddConfig(PreTrainedConfig):
    model_type = "nobody_named_this"

    def __init__(self, vocab_size=97, hidden_size=32, num_hidden_layers=N_BLOCKS, **kwargs):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.num_attention_heads, self.max_position_embeddings = 4, 256
        super().__init__(**kwargs)


class Storey(nn.Module):
    """A block as nobody else writes one: attention by hand, and its arguments in an order of its own."""

    def __init__(self, size, index):
        super().__init__()
        self.index = index
        self.mix, self.out, self.wide = nn.Linear(size, 3 * size), nn.Linear(size, size), nn.Linear(size, size)
        self.norm = nn.LayerNorm(size)

    def forward(self, x, visible, memory=None):
        q, k, v = (part[:, None] for part in self.mix(self.norm(x)).chunk(3, dim=-1))
        if memory is not None:
            k, v = memory.update(k, v, self.index)
        weights = (q @ k.transpose(-1, -2) / 8).masked_fill(~visible[:, None], float("-inf")).softmax(-1)
        x = x + self.out((weights @ v)[:, 0])
        return (x + self.wide(x.tanh()), None)


class OddBody(PreTrainedModel):
    config_class = OddConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.places = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.storeys = nn.ModuleList(Storey(config.hidden_size, i) for i in range(config.num_hidden_layers))
        self.last = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def forward(self, input_ids, past_key_values=None, use_cache=None, **kwargs):
        start = past_key_values.get_seq_length() if past_key_values is not None else 0
        end = start + input_ids.shape[1]
        places = torch.arange(start, end)
        x = 2 * self.words(input_ids) + self.places(places)
        visible = (torch.arange(end)[None] <= places[:, None])[None]
        for storey in self.storeys:
            x, _ = storey(x, visible, memory=past_key_values)
        return self.last(x) * 3


class OddModel(PreTrainedModel, GenerationMixin):
    config_class = OddConfig

    def __init__(self, config):
        super().__init__(config)
        self.body, self.vocabulary = OddBody(config), nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self):
        return self.vocabulary

    def forward(self, input_ids, past_key_values=None, use_cache=None, **kwargs):
        x = self.body(input_ids, past_key_values, use_cache)
        return CausalLMOutputWithPast(logits=20 * (self.vocabulary(x) / 20).tanh(), past_key_values=past_key_values)


def test_a_model_that_nobody_named():
    """Its norm is scaled afterwards and its logits are capped: parts that only its own code knows."""
    torch.manual_seed(0)
    model = OddModel(OddConfig(eos_token_id=2, pad_token_id=0)).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    heads = random_heads(model)
    for policy in POLICIES:
        out = eelib.generate(model, prompts(1)[0], heads=heads, policy=policy, max_new_tokens=40)
        assert torch.equal(out.sequences, own_text(model, prompts(1)[0], max_new_tokens=40))
        assert out.stats.drafted > 0
