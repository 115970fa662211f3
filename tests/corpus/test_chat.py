import pytest
from tiny import chatty, letters

from eelib.corpus.chat import Turns, as_prompt
from eelib.errors import CorpusError


def test_turns_of_a_chat_template():
    tokenizer = chatty()
    turns = Turns.of(tokenizer)
    assert tokenizer.decode(turns.opening) == "<bos>u:"
    assert tokenizer.decode(turns.to_model) == "<eos><bos>a:" and tokenizer.decode(turns.to_user) == "<eos><bos>u:"
    assert turns.ends == {1, 2}
    prompt = as_prompt("hi", tokenizer)[0].tolist()
    assert prompt == [*turns.opening, *tokenizer("hi").input_ids, *turns.to_model]


def test_without_a_template_there_is_only_an_opening():
    assert Turns.of(letters()) == Turns((1,), (), (), frozenset())
    assert Turns.of(letters(unk_token="<unk>", eos_token="<eos>")).opening == (2,)
    assert as_prompt("hi", letters())[0].tolist() == letters()("hi").input_ids


def test_tokenizers_that_cannot_begin_a_text():
    with pytest.raises(CorpusError, match="no token that begins"):
        Turns.of(letters(unk_token="<unk>"))
    deaf = letters()
    deaf.chat_template = "{{ messages | length }}"
    with pytest.raises(CorpusError, match="does not repeat"):
        Turns.of(deaf)
