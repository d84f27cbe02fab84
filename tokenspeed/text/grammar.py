"""Answers held to a grammar: compiled once, kept, and followed token by token through llguidance.

Masks are exact: of what they allow, some continuation is an answer that the grammar describes.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import lru_cache
from threading import Lock, Thread, stack_size
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark

from tokenspeed.core.constraint import Masks
from tokenspeed.errors import RequestError
from tokenspeed.text.formats import AnyJson, Choices, Format, JsonSchema, Lark, Regex
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.text.trigger import Trigger

MOST_CHARS = 512 * 1024  # of a grammar's source; the largest tool lists of agents have 100,000
MOST_WRITTEN = 32 * 1024  # of rules that a client wrote itself; some of 40,000 compile for ten seconds
KEPT_CHARS = 8 * 1024 * 1024  # of the sources of all compiled grammars that are kept
MOST_KEPT = 256
KEPT_TEXTS, LONGEST_KEPT = 4096, 256  # whose tokens are kept; bytes
# Whitespace in JSON is what models write, bounded: else an unlucky draw could go on with spaces for ever.
JSON_SPACE = r"(\n[ \t]{0,40}| )"
STACK_BYTES = 1 << 30  # of address space: the library compiles chains of references recursively


def _limits(*, row: int) -> LLParserLimits:
    """What compiling and following a grammar may take; the library's own bounds let a schema compile for
    seconds. `row` are the ways to read what is there of an answer: some four for an optional property."""
    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        max_grammar_size=200_000,
        max_lexer_states=50_000,
        max_items_in_row=row,
        verbose_errors=False,
    )


LIMITS = _limits(row=4_000)
# Rules that a client wrote may be ambiguous; with 2,000 a single mask takes more than a second.
WRITTEN_LIMITS = _limits(row=500)
# Bounds of numbers, also where a schema is part of rules. Beyond 64 bits the library overflows, and some end
# the process.
BOUND = re.compile(
    r'"(minimum|maximum|exclusiveMinimum|exclusiveMaximum)\\*"\s*:\s*'
    r"(-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)"
)
LEAST, GREATEST = -(2**63) + 1, 2**63 - 1
LOST = "the answer left its grammar"
TOO_COMPLEX = "the grammar is too complex to follow here"
# Of the library's messages, what names the schema's fault.
UNIMPLEMENTED = re.compile(r"Unimplemented keys: (\[.*\])")


class _Words:
    """A vocabulary as the library wants to see it: as many tokens as the model has logits, whatever the
    tokenizer has."""

    def __init__(self, tokenizer: Tokenizer, size: int, eos: int) -> None:
        table = tokenizer.table(skip_special=False)
        self.eos_token_id = eos
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [table[token] for token in range(size)]
        self.special_token_ids = sorted(token for token in tokenizer.special_ids if token < size)
        self._encode = tokenizer.encode_inside
        special = tokenizer.special_ids
        self._ids = {word: token for token, word in enumerate(self.tokens) if word and token not in special}
        self._longest = max(map(len, self._ids), default=0)
        self._known = lru_cache(KEPT_TEXTS)(self._encoded)  # what a schema prescribes comes again and again

    def __call__(self, text: bytes | str) -> list[int]:
        """Where only one text can follow, its first token here is the only one that is allowed."""
        data = text.encode(errors="replace") if isinstance(text, str) else text
        return self._known(data) if len(data) <= LONGEST_KEPT else self._encoded(data)

    def _encoded(self, data: bytes) -> list[int]:
        ids = self._encode(data.decode(errors="replace"))
        words = [self.tokens[token] for token in ids if token < len(self.tokens)]
        return ids if len(words) == len(ids) and b"".join(words) == data else self._spelled(data)

    def _spelled(self, data: bytes) -> list[int]:
        """In the longest tokens that there are: encoding may have written the text another way."""
        ids, start = [], 0
        while start < len(data):
            ends = range(min(start + self._longest, len(data)), start, -1)
            end = next((end for end in ends if data[start:end] in self._ids), None)
            if end is None:
                break
            ids.append(self._ids[data[start:end]])
            start = end
        return ids


class Grammars:
    """Compiles grammars for one model and keeps those used last. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos_ids: Sequence[int]) -> None:
        """Answers end with any of `eos_ids`; `vocab_size` is how many logits the model has."""
        ends = [token for token in eos_ids if token < vocab_size] or [0]
        words = TokenizerWrapper(_Words(tokenizer, vocab_size, ends[0]))
        self._tokens = LLTokenizer(words, eos_token=ends)
        self._table = tokenizer.table(skip_special=False)
        special = {self._table[token]: token for token in tokenizer.special_ids if self._table[token]}
        self._special = sorted(special.items(), key=lambda item: len(item[0]), reverse=True)
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._chars = 0
        self._lock = Lock()

    def follow(self, source: str, trigger: Callable[[], Trigger] | None = None) -> Callable[[], Grammar]:
        """What makes the constraint of one answer out of a grammar's `source`; it holds from the first token
        on, or from where the answer's own `trigger` says. Raises `RequestError` for a grammar that cannot be
        followed; a new one takes milliseconds to compile, so not in the loop."""
        matcher = self._compiled(source)
        if trigger is None:
            return lambda: Grammar(matcher.deep_copy())
        return lambda: Grammar(matcher.deep_copy(), trigger(), self._spell)

    def _spell(self, text: bytes) -> list[int]:
        """Tokens that stand for `text`, which may begin with the spelling of a special token."""
        first = next((token for spelling, token in self._special if text.startswith(spelling)), None)
        if first is None:
            return self._tokens.tokenize_bytes(text)
        return [first, *self._tokens.tokenize_bytes(text.removeprefix(self._table[first]))]

    def knows(self, source: str) -> bool:
        """Whether `follow` would have it at once."""
        return source in self._kept

    def _compiled(self, source: str) -> LLMatcher:
        with self._lock:
            if (known := self._kept.get(source)) is not None:
                self._kept.move_to_end(source)
                return known
        matcher = _with_room(lambda: self._compile(*_checked(source)))
        with self._lock:
            if source not in self._kept:
                self._kept[source] = matcher
                self._chars += len(source)
            while len(self._kept) > MOST_KEPT or self._chars > KEPT_CHARS:
                oldest, _ = self._kept.popitem(last=False)
                self._chars -= len(oldest)
        return matcher

    def _compile(self, source: str, limits: LLParserLimits) -> LLMatcher:
        matcher = LLMatcher(self._tokens, source, limits=limits, log_level=0)
        if matcher.is_error():
            raise _refused(_why(matcher.get_error()))
        first = np.zeros((1, -(-self._tokens.vocab_size // 32)), np.int32)
        if Grammar(matcher.deep_copy()).fill(first, 0, 0, ()) is not None or not first.any():
            raise _refused("describes nothing that could be answered, or is too complex to follow")
        return matcher


class Grammar:
    """The `Constraint` of one answer."""

    __slots__ = ("_before", "_followed", "_matcher", "_spell", "_taken", "_tokens", "_trigger")

    def __init__(
        self,
        matcher: LLMatcher,
        trigger: Trigger | None = None,
        spell: Callable[[bytes], list[int]] = lambda text: [],
    ) -> None:
        """It holds from the first token on, or from where the trigger says; `spell` gives the tokens of what
        it follows first then."""
        self._matcher = matcher
        self._trigger = trigger
        self._spell = spell
        self._taken = 0  # tokens of the answer
        self._tokens: list[int] = []  # that the grammar is to follow, which the device's threads do
        self._before = 0  # of the answer, tokens in front of these, less what these begin with in their place
        self._followed: list[int] = []  # so far; the last one may turn out not to have been drawn

    @property
    def active(self) -> bool:
        return self._trigger is None

    def take(self, tokens: Sequence[int]) -> int:
        kept = len(tokens)
        if self._trigger is None:
            self._tokens += tokens
        else:
            for index, token in enumerate(tokens):
                opened = self._trigger.push(token)
                if opened is not None and self._opens_with(opened, surely=self._trigger.final):
                    self._trigger, kept = None, index + 1
                    self._before = self._taken + kept - len(self._tokens)
                    break
        self._taken += kept
        return kept

    def fitting(self, drafts: Sequence[int]) -> int:
        if self._trigger is not None:
            return self._trigger.before(drafts)
        tokens = self._tokens
        matcher = self._behind(self._before + len(tokens), tokens[-1] if tokens else 0)
        return 0 if matcher.is_error() else matcher.validate_tokens(list(drafts))

    def choose(self, count: int, last: int, tries: Sequence[int]) -> int | None:
        matcher, refused = self._behind(count, last), -1
        for token in tries:
            if token != refused and matcher.try_consume_tokens([token]):
                self._followed.append(token)
                return token
            refused = token
        return None

    def fill(self, masks: Masks, count: int, last: int, drafts: Sequence[int]) -> str | None:
        matcher, size = self._behind(count, last), masks.shape[1] * masks.itemsize
        if matcher.is_error():
            return self._fault()
        followed = 0
        place, step = masks.ctypes.data, masks.strides[0]
        for number, draft in enumerate((*drafts, -1)):
            matcher.unsafe_compute_mask_ptr(place + number * step, size)
            if matcher.is_error():
                return self._fault()
            # What comes after a forbidden draft is never drawn.
            if draft < 0 or matcher.try_consume_tokens([draft]) < 1:
                break
            followed += 1
        if followed:
            matcher.rollback(followed)
        return None

    def _opens_with(self, text: bytes, *, surely: bool) -> bool:
        """Whether the grammar can begin so, and then it does; else this was no opener, unless it is `surely`
        where the grammar begins: then it is a fault."""
        spelled = self._spell(text)
        if not surely and self._matcher.validate_tokens(spelled) < len(spelled):
            return False
        self._tokens = spelled
        return True

    def _fault(self) -> str:
        """Why the matcher goes no further."""
        return LOST if "satisfy the grammar" in self._matcher.get_error() else TOO_COMPLEX

    def _behind(self, count: int, last: int) -> LLMatcher:
        """The matcher, behind the first `count` tokens of the answer.

        `last` counts only where it was not taken yet: the tokens by which a grammar begins amid an answer may
        be spelled otherwise than the answer spelled them. What lies between those taken and it has been
        followed in this very step.
        """
        matcher, tokens, followed = self._matcher, self._tokens, self._followed
        count -= self._before
        known, at = len(tokens), len(followed)
        undone = 0
        while at > count or (
            at and followed[-1] != (tokens[at - 1] if at <= known else last if at == count else followed[-1])
        ):
            followed.pop()  # a step was undone, and draws again
            undone, at = undone + 1, at - 1
        if undone:
            matcher.rollback(undone)
        if at < count:  # by one token nearly always
            further = tokens[at:count]
            if at + len(further) < count:
                further.append(last)
            followed += further
            matcher.consume_tokens(further)
        return matcher


def grammar_source(rules: str, answer: Format | None) -> str:
    """The source of a grammar, for `Grammars`: Lark rules, in which `@answer` is an answer in that format."""
    named = [] if answer is None else [{"name": "answer", **_answer(answer)}]
    main = {"name": "main", "lark_grammar": rules}
    try:
        return json.dumps({"grammars": [main, *named]}, ensure_ascii=False)
    except RecursionError:
        raise _refused("is nested too deeply") from None


def _checked(source: str) -> tuple[str, LLParserLimits]:
    """The grammar as the library reads it, and its limits; raises where compiling it might never end, or end
    the process."""
    if len(source) > MOST_CHARS:
        raise _refused(f"is too large: {len(source)} characters as a grammar, the most is {MOST_CHARS}")
    for keyword, written in BOUND.findall(source):
        bound = float(written)
        if bound < LEAST or (bound > GREATEST and not keyword.lower().endswith("maximum")):
            raise _refused(f"has the {keyword} {written}, which is beyond integers of 64 bits")
    grammars = json.loads(source)
    limits = LIMITS
    for each in grammars["grammars"]:
        if "written" in each:
            each["lark_grammar"], limits = _lark(each.pop("written")), WRITTEN_LIMITS
    return json.dumps(grammars, ensure_ascii=False), limits


def _with_room(work: Callable[[], LLMatcher]) -> LLMatcher:
    """What `work` gives or raises, on a thread of its own whose stack is deep enough for any grammar."""
    made: Future[LLMatcher] = Future()

    def run() -> None:
        try:
            made.set_result(work())
        except BaseException as error:
            made.set_exception(error)

    usual = stack_size(STACK_BYTES)  # which threads that others start meanwhile get as well
    try:
        Thread(target=run, name="grammar").start()
    finally:
        stack_size(usual)
    return made.result()


def _answer(wanted: Format) -> dict[str, Any]:
    match wanted:
        case JsonSchema(schema, strict):
            return {"json_schema": json_options(schema, strict=strict)}
        case AnyJson():
            return {"json_schema": json_options({"type": "object"}, strict=True)}
        case Regex(pattern):
            return {"lark_grammar": f"start: /{_delimited(_bounded(pattern))}/"}
        case Lark(grammar):
            return {"written": _bounded(grammar)}  # what it is in Lark takes a while to find out
        case Choices(options):
            quoted = " | ".join(json.dumps(option, ensure_ascii=False) for option in options)
            # One terminal: there may be thousands of them.
            return {"lark_grammar": f"start: CHOICE\nCHOICE: {quoted}"}


def _bounded(written: str) -> str:
    if len(written) > MOST_WRITTEN:
        raise _refused(f"is too large: {len(written)} characters, the most is {MOST_WRITTEN}")
    return written


def _lark(grammar: str) -> str:
    """The grammar itself, or what it is in this syntax if it is written in llama.cpp's GBNF."""
    try:
        return any_to_lark(grammar)
    except Exception as error:  # the library raises bare exceptions as well
        raise _refused(f"cannot be read as GBNF: {' '.join(str(error).split())[:300]}") from None


def json_options(schema: Any, *, strict: bool) -> dict[str, Any]:
    """The schema with what the library is to make of it: bounded whitespace, and whether keywords that it
    cannot hold an answer to are an error."""
    if not isinstance(schema, dict):
        schema = {} if schema else {"enum": []}
    options: dict[str, Any] = {"whitespace_pattern": JSON_SPACE}
    return {**schema, "x-guidance": options if strict else {**options, "lenient": True}}


def _delimited(pattern: str) -> str:
    """The pattern between slashes: those inside, and line breaks, are written as escapes."""
    escaped = re.sub(r"(\\.)|/", lambda found: found.group(1) or r"\/", pattern, flags=re.DOTALL)
    return escaped.replace("\n", r"\n").replace("\r", r"\r")


def _why(message: str) -> str:
    """What the library says of a grammar, in a line."""
    if found := UNIMPLEMENTED.search(message):
        return (
            f"uses {', '.join(json.loads(found.group(1)))}, which answers cannot be held to; leave that out"
        )
    line = " ".join(message.split())
    return f"cannot be followed: {line[:300]}"


def _refused(problem: str) -> RequestError:
    return RequestError(problem, code="invalid_grammar")
