"""A streamed text is the whole text, in whole characters."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed.text.detokenizer import Detokenizer
from tokenspeed.text.tokenizer import Tokenizer

unhurried = settings(deadline=None)  # a busy machine may take its time
# Without surrogates, which are no text, and without U+2581, which SentencePiece takes for a space.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=60)


def chunks(data: st.DataObject, ids: list[int]) -> list[list[int]]:
    """`ids` cut at random places; a chunk may be empty."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=len(ids) + 2)))
    return [ids[start:end] for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True)]


@unhurried
@given(text=TEXTS, data=st.data())
def test_the_pieces_of_a_text_are_whole_characters_and_make_the_text(
    text: str, data: st.DataObject, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode(text, add_special=True, parse_special=False)
    stream = Detokenizer(tokenizer)
    pieces = [stream.push(chunk) for chunk in chunks(data, ids)]
    assert "".join(pieces) == text  # so no piece had a U+FFFD for half a character
    assert stream.flush() == ""


@unhurried
@given(data=st.data(), skip=st.booleans())
def test_whatever_ids_come_the_stream_is_what_decoding_all_of_them_gives(
    data: st.DataObject, skip: bool, tokenizer: Tokenizer
) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 5), max_size=40))
    stream = Detokenizer(tokenizer, skip_special=skip)
    pieces = [stream.push(chunk) for chunk in chunks(data, ids)]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids, skip_special=skip)


@unhurried
@given(data=st.data())
def test_what_is_certain_is_never_held_back(data: st.DataObject, tokenizer: Tokenizer) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    stream = Detokenizer(tokenizer, skip_special=False)
    text = ""
    for count, token in enumerate(ids, start=1):
        text += stream.push([token])
        known = b"".join(tokenizer.token_bytes(token) for token in ids[:count])
        held = known.decode(errors="replace").removeprefix(" " * tokenizer.lead)
        assert held.startswith(text)
        # At most a character whose end has not come yet. It counts as two where it began as a surrogate does,
        # whose first two bytes are two errors once nothing follows.
        assert len(held) - len(text) <= 2


def test_a_character_cut_off_by_the_end_is_told(bpe: Tokenizer) -> None:
    ids = bpe.encode("a🤖", add_special=False)
    stream = Detokenizer(bpe)
    assert "".join(stream.push([token]) for token in ids[:-1]) == "a"
    assert stream.flush() == "�"
    assert stream.flush() == ""


def test_a_text_of_its_own_loses_the_space_in_front_and_a_continued_one_keeps_it(
    sentencepiece: Tokenizer,
) -> None:
    ids = sentencepiece.encode("fox  jumps", add_special=True)
    own, continued = Detokenizer(sentencepiece), Detokenizer(sentencepiece, continues=True)
    assert "".join(own.push([token]) for token in ids) == "fox  jumps"
    assert "".join(continued.push([token]) for token in ids) == " fox  jumps"


def test_special_tokens_are_skipped_or_shown(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("fox", add_special=False), tokenizer.eos_id or 0]
    assert Detokenizer(tokenizer).push(ids) == "fox"
    assert Detokenizer(tokenizer, skip_special=False).push(ids) == "fox</s>"
