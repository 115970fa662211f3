import pytest
import torch
from tiny import FAMILIES, own_text, tiny_model

from eelib.backbone.teacher import Teacher
from eelib.corpus.chat import Turns
from eelib.corpus.generation import generate_texts, sample_tokens

TURNS = Turns(opening=(1, 20), to_model=(2, 30, 31), to_user=(2, 40), ends=frozenset({2}))


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def test_draws_follow_the_distribution():
    logits, n = 3 * torch.randn(1, 1000, generator=random()), 20_000
    for temperature in (0.7, 1.5):
        expected = (logits[0] / temperature).softmax(-1)
        drawn, best = sample_tokens(logits.expand(n, -1), torch.full((n,), temperature), random(1), chunk=64)
        assert (best == logits.argmax()).all()
        found = torch.bincount(drawn, minlength=1000) / n
        assert ((found - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt() + 1e-3).all()
    assert (sample_tokens(logits.expand(5, -1), torch.zeros(5), random())[0] == logits.argmax()).all()


def test_what_cannot_be_is_never_drawn():
    logits = torch.full((2000, 300), float("-inf"))
    logits[:, [7, 299]] = 0.0
    assert set(sample_tokens(logits, torch.ones(2000), random(), chunk=16)[0].tolist()) == {7, 299}


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_the_models_own(family):
    model = tiny_model(family)
    text = generate_texts(model, Turns((1, 20, 30, 20), (), (), frozenset()), 33, [0.0] * 5, 1.0, 6, random())
    assert text.by_user[0].tolist() == [False] * 3 + [True] * 6 + [False] * 24
    for row in text.tokens:
        prompt = row[None, :10]
        settings = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 23, "eos_token_id": None}
        assert row.equal(own_text(model, prompt, **settings)[0])
    assert len({tuple(row.tolist()) for row in text.tokens}) > 1  # its user's words are sampled


def test_a_chat_follows_its_template(llama):
    """The speaker of every token is found again from the tokens alone."""
    text = generate_texts(llama, TURNS, 120, [0.0, 1.0, 1.0, 1.0], 1.0, 9, random(3))
    turns = 0
    for tokens, model, user in zip(text.tokens.tolist(), text.by_model, text.by_user, strict=True):
        assert tuple(tokens[:2]) == TURNS.opening
        at, answering = 2, False
        while at < len(tokens):
            between, said = (TURNS.to_user, model) if answering else (TURNS.to_model, user)
            start = at
            while at < len(tokens) and said[at - 1]:
                at += 1
            words = tokens[start:at]
            ended = bool(words) and words[-1] == 2
            assert ended or at == len(tokens) or (not answering and len(words) == 9)
            assert 2 not in words[:-1] and (answering or len(words) <= 9)
            if at == len(tokens) and not ended:
                break
            rest = list(between[1:] if ended else between)
            assert tokens[at : at + len(rest)] == rest[: len(tokens) - at]
            assert not model[at - 1 : at - 1 + len(rest)].any() and not user[at - 1 : at - 1 + len(rest)].any()
            at, answering, turns = at + len(rest), not answering, turns + 1
    assert turns >= 8


def test_given_words_open_a_chat_and_do_not_count(llama):
    given = [[7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18], [], [5]]
    text = generate_texts(llama, TURNS, 60, [0.0, 1.0, 0.0], 1.0, 9, random(3), prompts=given)
    for row, words in enumerate(given):
        if words:
            end = 2 + len(words)
            assert text.tokens[row, 2 : end + 3].tolist() == [*words, *TURNS.to_model]
            assert not text.by_user[row, : end + 2].any() and text.by_model[row, end + 2]
            answer = own_text(llama, text.tokens[row : row + 1, : end + 3], max_new_tokens=6, eos_token_id=None)[0]
            assert text.tokens[row, : end + 9].equal(answer) or 2 in answer[end + 3 :]
    drawn = text.tokens[1, 2:11].tolist()
    size = drawn.index(2) + 1 if 2 in drawn else 9
    assert text.by_user[1, 1 : 1 + size].all(), "nothing given: the model makes the user's words up"
    for row in range(3):  # the user's next words are made up again, and as long as any
        later = text.by_user[row, 20:]
        assert later.any() or not (text.tokens[row, 20:50] == 2).any()


def test_an_eight_bit_copy_writes_nearly_what_the_model_does():
    """Seen where both read the same words, the given ones; what they say next may part by a rounding."""
    model, given = tiny_model("llama", torch.float32), [[7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]]
    ours = [
        generate_texts(model, TURNS, 40, [0.0], 1.0, 9, random(), depths=(1, 5), prompts=given, int8=int8)
        for int8 in (False, True)
    ]
    read = torch.arange(40) < 14
    read[0] = False  # before the opening's last token nothing is said
    assert ours[0].tokens[:, :14].equal(ours[1].tokens[:, :14])
    exact, rounded = (text.teacher_outputs.of_row(0, read).final for text in ours)
    assert 0 < (exact - rounded).norm() < 0.25 * exact.norm()  # 42 products, each off by up to 1/254
    other = generate_texts(model, TURNS, 40, [0.0], 1.0, 9, random(), depths=(1, 5), prompts=[[*range(30, 42)]])
    assert (exact - other.teacher_outputs.of_row(0, read).final).norm() > 0.5 * exact.norm(), "words count for more"


def test_an_unembedding_of_a_class_of_its_own_is_not_rounded():
    model = tiny_model("llama", torch.bfloat16)
    model.lm_head.__class__ = type("Mine", (torch.nn.Linear,), {})
    text = generate_texts(model, TURNS, 20, [0.0, 0.7], 1.0, 9, random(), int8=True)
    assert text.tokens.shape == (2, 20)


def test_lessons_kept_while_writing_are_those_asked_for_later(llama):
    depths = (1, 3, 5)
    text = generate_texts(llama, TURNS, 40, [0.0, 0.8], 1.0, 9, random(), depths=depths)
    for row in range(2):
        mask = text.by_model[row]
        kept, asked = text.teacher_outputs.of_row(row, mask), Teacher(llama, depths).outputs([text.tokens[row]], [mask])
        assert kept.argmax.equal(asked.argmax) and kept.final.allclose(asked.final)
        assert kept.log_normaliser.allclose(asked.log_normaliser)
        for depth in depths:
            # Kept in bfloat16: half a unit of its last place.
            assert kept.states[depth].double().allclose(asked.states[depth], rtol=2**-8)


def test_writing_leaves_the_model_as_it_was(llama):
    before = {name: id(module) for name, module in llama.named_modules()}
    implementation = llama.config._attn_implementation
    generate_texts(llama, TURNS, 20, [0.0], 1.0, 9, random())
    assert before == {name: id(module) for name, module in llama.named_modules()}
    assert (
        llama.config._attn_implementation == implementation and llama.model.layers[0].self_attn.config is llama.config
    )
