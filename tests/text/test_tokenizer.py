"""Text to ids and back, held against the `tokenizers` library itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed.errors import ModelError, RequestError
from tokenspeed.text.fim import File, Order
from tokenspeed.text.tokenizer import Tokenizer

unhurried = settings(deadline=None)  # a busy machine may take its time
# Without surrogates, which are no text, and without U+2581, which SentencePiece takes for a space.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=60)


@unhurried
@given(text=TEXTS)
def test_text_is_encoded_as_the_library_encodes_it(
    text: str, tokenizer: Tokenizer, backend: tokenizers.Tokenizer
) -> None:
    assert tokenizer.encode(text, add_special=True) == backend.encode(text).ids
    assert tokenizer.encode(text, add_special=False) == backend.encode(text, add_special_tokens=False).ids


@unhurried
@given(text=TEXTS)
def test_text_comes_back_from_its_ids(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text, add_special=True, parse_special=False)
    assert tokenizer.decode(ids, skip_special=True) == text


@unhurried
@given(data=st.data(), skip=st.booleans())
def test_any_ids_of_a_byte_level_tokenizer_are_decoded_as_the_library_decodes_them(
    data: st.DataObject, skip: bool, bpe: Tokenizer
) -> None:
    library = tokenizers.Tokenizer.from_str(bpe._backend.to_str())
    ids = data.draw(st.lists(st.integers(0, bpe.vocab_size + 5), max_size=30))
    assert bpe.decode(ids, skip_special=skip) == library.decode(ids, skip_special_tokens=skip)


@unhurried
@given(data=st.data(), skip=st.booleans())
def test_any_ids_with_whole_characters_are_decoded_as_the_library_decodes_them(
    data: st.DataObject, skip: bool, tokenizer: Tokenizer, backend: tokenizers.Tokenizer
) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    whole = [token for token in ids if tokenizer.token_bytes(token).isascii()]
    assert tokenizer.decode(whole, skip_special=skip) == backend.decode(whole, skip_special_tokens=skip)


def test_an_invalid_byte_costs_itself_alone(sentencepiece: Tokenizer) -> None:
    ids = [sentencepiece.token_id(f"<0x{byte:02X}>") or 0 for byte in (*"ß".encode(), 0xFF, *"你".encode())]
    assert sentencepiece.decode(ids, skip_special=True) == "ß�你"


@unhurried
@given(text=TEXTS)
def test_the_bytes_of_a_texts_tokens_are_the_bytes_of_the_text(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    joined = b"".join(tokenizer.token_bytes(token) for token in ids)
    assert joined == (b" " * tokenizer.lead if text else b"") + text.encode()


def test_an_id_without_a_token_stands_for_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""
    assert tokenizer.token_bytes(-1) == b""


def test_the_spelling_of_a_special_token_is_one_token_only_where_it_is_asked_for(
    tokenizer: Tokenizer,
) -> None:
    parsed = tokenizer.encode("a</s>b", add_special=False)
    plain = tokenizer.encode("a</s>b", add_special=False, parse_special=False)
    assert tokenizer.eos_id in parsed
    assert not tokenizer.special_ids & set(plain)
    assert tokenizer.decode(plain, skip_special=True) == "a</s>b"


def test_an_added_token_that_is_not_special_is_one_token_always() -> None:
    library = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "<": 1}, []))
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens(["<s>"])
    library.add_tokens(["<think>"])
    library.add_special_tokens(["<e>"])
    tokenizer = Tokenizer(library.to_str().encode(), {})
    assert tokenizer.special_ids == {2, 4}
    assert tokenizer.encode("a<s><think><e>", add_special=True) == [0, 2, 3, 4]
    assert tokenizer.encode("a<think><e>", add_special=True, parse_special=False) == [0, 3, 1]


def test_special_tokens_are_skipped_or_shown(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("fox</s>", add_special=True)
    assert tokenizer.decode(ids, skip_special=True) == "fox"
    shown = tokenizer.decode(ids, skip_special=False)
    assert shown.startswith("<s>")
    assert shown.endswith("fox</s>")


@pytest.mark.parametrize("parse_special", [True, False])
def test_a_lone_surrogate_is_the_requests_error(parse_special: bool, tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match=r"lone surrogate, U\+D83D, at character 3;") as caught:
        tokenizer.encode("abc\ud83ddef", add_special=True, parse_special=parse_special, param="prompt")
    assert caught.value.param == "prompt"


def test_a_very_long_text_is_encoded(tokenizer: Tokenizer) -> None:
    text = "a" * 100_000 + "The quick brown fox. " * 5_000
    assert tokenizer.decode(tokenizer.encode(text, add_special=False), skip_special=True) == text


def test_a_configured_truncation_or_padding_is_not_applied() -> None:
    library = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    library.decoder = tokenizers.decoders.ByteLevel()
    library.enable_truncation(3)
    library.enable_padding(length=16, pad_id=1, pad_token="b")
    tokenizer = Tokenizer(library.to_str().encode(), {})
    assert tokenizer.encode("aaaaa", add_special=True) == [0] * 5
    assert tokenizer.encode("a", add_special=True, parse_special=False) == [0]


def test_a_tokenizer_is_loaded_with_the_tokens_that_its_config_names(checkpoint: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.load(checkpoint())
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    assert tokenizer.eos_ids == {1}
    assert tokenizer.named_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_an_older_checkpoint_names_its_tokens_in_a_file_of_their_own(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint()
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").write_text('{"eos_token": "</s>", "bos_token": null}')
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, 1)
    assert Tokenizer.load(folder).eos_ids == {1}


def break_json(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def break_model(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"type": "Tarot"}}')


def break_config(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("[]")


def remove(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def leave_only_sentencepiece(folder: Path) -> None:
    remove(folder)
    (folder / "tokenizer.model").write_bytes(b"")


def name_an_unknown_token(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')


def make_a_folder_of_the_file(folder: Path) -> None:
    remove(folder)
    (folder / "tokenizer.json").mkdir()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (break_json, "tokenizer.json is no tokenizer: "),
        (break_model, "tokenizer.json is no tokenizer: "),
        (break_config, "tokenizer_config.json holds no JSON object"),
        (remove, "tokenizer.json is missing"),
        (leave_only_sentencepiece, "only a tokenizer.model; convert it"),
        (name_an_unknown_token, "has no token '<end>', which the tokenizer's config gives as eos_token"),
        (make_a_folder_of_the_file, "tokenizer.json cannot be read: "),
    ],
)
def test_a_damaged_checkpoint_is_told_in_one_line(
    damage: Callable[[Path], None], told: str, checkpoint: Callable[..., Path]
) -> None:
    folder = checkpoint()
    damage(folder)
    with pytest.raises(ModelError) as caught:
        Tokenizer.load(folder)
    assert told in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("decoder", "told"),
    [
        (None, "the decoder none is not supported; supported are ByteLevel, "),
        ({"type": "WordPiece", "prefix": "##", "cleanup": True}, "the decoder WordPiece is not supported"),
        ({"type": "Strip", "content": " ", "start": 0, "stop": 1}, "anything but leading spaces"),
        (
            {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"},
            "a pattern other than a plain string",
        ),
    ],
)
def test_a_decoder_that_a_stream_cannot_follow_is_refused(
    decoder: dict[str, Any] | None, told: str, bpe: Tokenizer
) -> None:
    state = json.loads(bpe._backend.to_str()) | {"decoder": decoder}
    with pytest.raises(ModelError, match=told):
        Tokenizer(json.dumps(state).encode(), {})


def test_a_metaspace_decoder_drops_the_space_that_it_set_in_front() -> None:
    library = tokenizers.Tokenizer(tokenizers.models.BPE({"▁": 0, "a": 1, "▁a": 2}, [("▁", "a")]))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    library.decoder = tokenizers.decoders.Metaspace()
    tokenizer = Tokenizer(library.to_str().encode(), {})
    assert tokenizer.decode(tokenizer.encode("a a", add_special=False), skip_special=True) == "a a"
    library.decoder = tokenizers.decoders.Metaspace(prepend_scheme="never")
    tokenizer = Tokenizer(library.to_str().encode(), {})
    assert tokenizer.decode([2, 2], skip_special=True) == " a a"


FIM_PROMPTS = [
    (
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        "<|fim_prefix|>{p}<|fim_suffix|>{s}<|fim_middle|>",
    ),
    (("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), "<fim_prefix>{p}<fim_suffix>{s}<fim_middle>"),
    (
        ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
        "<｜fim▁begin｜>{p}<｜fim▁hole｜>{s}<｜fim▁end｜>",
    ),
    (("[PREFIX]", "[SUFFIX]"), "[SUFFIX]{s}[PREFIX]{p}"),
    (
        ("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>"),
        "<[fim-suffix]>{s}<[fim-prefix]>{p}<[fim-middle]>",
    ),
]


@pytest.mark.parametrize(("marks", "form"), FIM_PROMPTS)
def test_a_gap_is_asked_for_in_the_order_that_the_model_was_trained_on(
    marks: tuple[str, ...], form: str, with_special: Callable[..., Tokenizer]
) -> None:
    tokenizer = with_special("byte level", *marks)
    ids = tokenizer.fim_prompt("def f(", "):\n  pass")
    assert tokenizer.decode(ids, skip_special=False) == "<s>" + form.format(p="def f(", s="):\n  pass")
    assert tokenizer.fim is not None
    assert set(tokenizer.fim.ids) == {tokenizer.token_id(mark) for mark in marks}


def test_a_token_that_ends_a_gap_in_training_ends_it_here(with_special: Callable[..., Tokenizer]) -> None:
    tokenizer = with_special("metaspace", "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
    assert tokenizer.fim is not None
    assert tokenizer.fim.ends == (tokenizer.token_id("▁<EOT>"),)
    assert tokenizer.fim.ids == tuple(
        tokenizer.token_id(f"▁<{mark}>") for mark in ("PRE", "SUF", "MID", "EOT")
    )


def test_code_llamas_suffix_gets_no_space_in_front(with_special: Callable[..., Tokenizer]) -> None:
    tokenizer = with_special("metaspace", "▁<PRE>", "▁<SUF>", "▁<MID>")
    pieces = [tokenizer.token_bytes(token) for token in tokenizer.fim_prompt("a", "  b")]
    assert b"".join(pieces) == b"<s> <PRE> a <SUF>  b <MID>"
    assert pieces[-1] == b" <MID>"


def test_a_mark_within_the_text_around_a_gap_is_only_text(bpe: Tokenizer) -> None:
    ids = bpe.fim_prompt("<|fim_suffix|>", "<|fim_middle|></s>")
    marks = [token for token in ids if token in bpe.special_ids]
    assert bpe.fim is not None
    assert bpe.fim.order is Order.PREFIX_FIRST
    assert marks == [bpe.bos_id, *bpe.fim.ids]


def test_other_files_stand_in_front_of_a_gap_as_the_family_writes_a_repository(
    with_special: Callable[..., Tokenizer],
) -> None:
    marks = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<repo_name>", "<file_sep>")
    tokenizer = with_special("byte level", *marks)
    files = [File("a", "1<file_sep>"), File("b", "2")]
    ids = tokenizer.fim_prompt("p", "s", files)
    text = (
        "<s><repo_name>repository\n<file_sep>a\n1<file_sep>\n<file_sep>b\n2\n<file_sep>file\n"
        "<fim_prefix>p<fim_suffix>s<fim_middle>"
    )
    assert tokenizer.decode(ids, skip_special=False) == text
    assert ids.count(tokenizer.token_id("<file_sep>")) == 3  # the one in the text is text


def test_files_that_do_not_fit_in_front_of_a_gap_are_left_out(bpe: Tokenizer) -> None:
    files = [File("a", "1"), File("b", "2")]
    alone, last = bpe.fim_prompt("p", "s"), bpe.fim_prompt("p", "s", files[1:])
    both = bpe.fim_prompt("p", "s", files)
    assert len(alone) < len(last) < len(both)
    assert bpe.fim_prompt("p", "s", files, most=len(both)) == both
    assert bpe.fim_prompt("p", "s", files, most=len(both) - 1) == last
    assert bpe.fim_prompt("p", "s", files, most=len(last) - 1) == alone
    assert bpe.fim_prompt("p", "s", files, most=0) == alone


def test_a_model_without_the_marks_refuses_a_suffix(with_special: Callable[..., Tokenizer]) -> None:
    tokenizer = with_special("byte level")
    assert tokenizer.fim is None
    with pytest.raises(RequestError, match="not trained to fill in the middle") as caught:
        tokenizer.fim_prompt("a", "b")
    assert caught.value.param == "suffix"
