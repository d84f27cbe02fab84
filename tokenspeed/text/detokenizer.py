"""Token ids to text as they come, in whole characters."""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence

from tokenspeed.text.tokenizer import Tokenizer, spaces_in_front
from tokenspeed.text.vocabulary import ByteTable


class Detokenizer:
    """One stream of tokens. What it has returned, put together, is what `Tokenizer.decode` gives for all.

    A SentencePiece-style tokenizer drops the space in front of a whole text; where the tokens continue a
    text that the reader already has (`continues`), that space is part of it and stays.
    """

    __slots__ = ("_lead", "_table", "_tail")

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special: bool = True,
        continues: bool = False,
        table: ByteTable | None = None,
    ) -> None:
        """`table` gives the bytes of every token, where it is another than that of the tokenizer."""
        self._table = tokenizer.table(skip_special=skip_special) if table is None else table
        self._lead = 0 if continues else tokenizer.lead
        self._tail = b""  # the start of a character whose end has not come yet; at most 3 bytes

    def push(self, ids: Sequence[int]) -> str:
        """The text that has become certain with `ids`."""
        table = self._table
        data = table[ids[0]] if len(ids) == 1 else b"".join([table[token] for token in ids])
        if self._tail:
            data = self._tail + data
        text, used = utf_8_decode(data, "replace", False)
        self._tail = data[used:]
        return self._without_lead(text) if self._lead and text else text

    def flush(self) -> str:
        """The end of the text: U+FFFD if it stops amid a character. Nothing may be pushed afterwards."""
        text, _ = utf_8_decode(self._tail, "replace", True)
        self._tail = b""
        return text

    def _without_lead(self, text: str) -> str:
        spaces = spaces_in_front(text, self._lead)
        self._lead = self._lead - spaces if spaces == len(text) else 0
        return text[spaces:]
