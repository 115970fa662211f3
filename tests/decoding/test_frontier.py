import torch
from tiny import N_BLOCKS, closeness, prompts

from eelib.backbone.kv_cache import KVCache
from eelib.backbone.segments import Backbone
from eelib.decoding.frontier import Frontier


def test_plain_generation_is_the_same_with_our_cache(model):
    for capacity in (64, 4):  # 4: it must grow
        ours = model.generate(
            prompts(1)[0], do_sample=False, max_new_tokens=30, past_key_values=KVCache(model.config, capacity)
        )
        assert torch.equal(ours, model.generate(prompts(1)[0], do_sample=False, max_new_tokens=30))


def test_waiting_states_are_completed_exactly_after_any_path(model):
    """Positions that go up in odd lots, some of them rolled back, end as in one pass over the whole text."""
    backbone, text = Backbone.of(model), prompts(1, 20)[0]
    frontier = Frontier(backbone, (2, 4), capacity=8)
    frontier.feed(text[:, :5])
    frontier.advance(0)
    frontier.feed(text[:, 5:7])
    frontier.advance(0)
    frontier.advance(1)  # takes all seven that wait
    frontier.feed(torch.flip(text[:, 7:12], [1]))  # a wrong guess
    frontier.advance(0)
    frontier.roll_back(7)
    frontier.feed(text[:, 7:])
    last = frontier.complete()
    expected = backbone.states(text, [N_BLOCKS])[N_BLOCKS]
    torch.testing.assert_close(last, expected[:, -last.shape[1] :], **closeness(model))
    assert frontier.block_positions == [25, 25, 20, 20, 20, 20]
    cache = KVCache(model.config, 32)
    model(text, past_key_values=cache)
    for ours, theirs in zip(frontier.cache.layers, cache.layers, strict=True):
        assert ours.length == theirs.length == 20
        torch.testing.assert_close(ours.keys[:, :, :20], theirs.keys[:, :, :20], **closeness(model))
        torch.testing.assert_close(ours.values[:, :, :20], theirs.values[:, :, :20], **closeness(model))


def test_rolling_back_into_waiting_states(model):
    backbone, text = Backbone.of(model), prompts(1, 9)[0]
    frontier = Frontier(backbone, (3,), capacity=8)
    frontier.feed(text[:, :4])
    frontier.complete()
    frontier.feed(text[:, 4:])
    frontier.advance(0)
    frontier.roll_back(6)  # three of the five that wait go
    last = frontier.complete()
    assert last.shape[1] == 2
    expected = backbone.states(text[:, :6], [N_BLOCKS])[N_BLOCKS][:, -2:]
    torch.testing.assert_close(last, expected, **closeness(model))
