"""Grammars are compiled once, say exactly what may follow, and cannot hurt the server."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from tests.schemas import Schema, schemas, validator
from tests.text.conftest import byte_level, wrap
from tokenspeed.core.constraint import Masks
from tokenspeed.errors import RequestError
from tokenspeed.text import grammar as grammar_module
from tokenspeed.text.formats import AnyJson, Choices, Format, JsonSchema, Lark, Regex
from tokenspeed.text.grammar import Grammar, Grammars, grammar_source
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.text.trigger import Trigger
from tokenspeed.text.vocabulary import ByteTable

MOST_SECONDS = 10.0  # of what must end; it takes far less
POINT: Schema = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}, "tag": {"enum": ["no", "yes"]}},
    "required": ["x", "tag"],
    "additionalProperties": False,
}


def filled(grammar: Grammar, masks: Masks, drafts: Sequence[int]) -> str | None:
    """The masks behind all that it has taken."""
    return grammar.fill(masks, grammar._taken, 0, drafts)


class Followed:
    """A grammar that is followed token by token."""

    def __init__(self, made: Callable[[], Grammar], tokenizer: Tokenizer) -> None:
        self.made = made
        self.grammar = made()
        self._table = tokenizer.table(skip_special=False)
        self._vocab = tokenizer.vocab_size
        self.ends = tokenizer.eos_ids
        self.text = b""
        self.last = 0

    def masks(self, drafts: Sequence[int] = ()) -> list[frozenset[int]]:
        """What may come here, and after each of the drafts."""
        masks = np.zeros((1 + len(drafts), -(-self._vocab // 32)), np.int32)
        assert filled(self.grammar, masks, drafts) is None
        bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")[:, : self._vocab]
        return [frozenset(np.flatnonzero(row).tolist()) for row in bits]

    def follow(self, drawn: list[int], behind: tuple[int, ...] = ()) -> int:
        """How many of these may come behind tokens of this step that nobody has taken yet."""
        last, kept = behind[-1] if behind else self.last, 0
        while kept < len(drawn) and self.choose(len(behind) + kept, last, drawn[kept : kept + 1]) is not None:
            last, kept = drawn[kept], kept + 1
        return kept

    def choose(self, ahead: int, last: int, tries: Sequence[int]) -> int | None:
        return self.grammar.choose(self.grammar._taken + ahead, last, tries)

    def take(self, token: int) -> None:
        self.last = token
        assert self.grammar.take([token]) == 1
        self.text += self._table[token]

    def walk(self, chance: random.Random, most: int) -> Iterator[int]:
        """Tokens drawn from all that are allowed, up to an end, which is tried for now and then."""
        for _ in range(most):
            allowed = self.masks()[0]
            assert allowed, self.text
            ends = sorted(allowed & self.ends)
            token = ends[0] if ends and chance.random() < 0.3 else chance.choice(sorted(allowed))
            yield token
            if token in self.ends:
                return
            self.take(token)


def grammars_of(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, vocab_size=tokenizer.vocab_size, eos_ids=sorted(tokenizer.eos_ids))


def source_of(wanted: Format) -> str:
    return grammar_source("start: @answer\n", wanted)


def followed(tokenizer: Tokenizer, wanted: Format) -> Followed:
    return Followed(grammars_of(tokenizer).follow(source_of(wanted)), tokenizer)


def ended(tokenizer: Tokenizer, wanted: Format, seed: int, most: int = 300) -> str | None:
    """A random answer; None where it did not end."""
    walk = followed(tokenizer, wanted)
    last = list(walk.walk(random.Random(seed), most))[-1:]
    return walk.text.decode() if last and last[0] in walk.ends else None


# -- what is held ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_whatever_is_drawn_of_what_is_allowed_fits_the_schema(bpe: Tokenizer) -> None:
    grammars, chance = grammars_of(bpe), random.Random(3)
    ends = 0
    for name, schema in schemas():
        if "schema of the rest" in name:
            continue  # it cannot be counted how many of some names there are
        made, check = grammars.follow(source_of(JsonSchema(schema))), validator(schema)
        for _ in range(3):
            walk = Followed(made, bpe)
            if list(walk.walk(chance, 400))[-1] in walk.ends:
                ends += 1
                assert not list(check.iter_errors(json.loads(walk.text))), (name, walk.text)
    assert ends > 1000


@pytest.mark.parametrize("seed", range(5))
def test_json_of_both_kinds_of_tokenizer_fits(tokenizer: Tokenizer, seed: int) -> None:
    for schema in (POINT, {"type": "array", "items": {"enum": ["größe", "🙂"]}, "maxItems": 3}):
        text = ended(tokenizer, JsonSchema(schema), seed)
        assert text is not None
        validator(schema).validate(json.loads(text))


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (Regex(r"a/b|[0-9]{2,4}-[xyz]"), r"a/b|[0-9]{2,4}-[xyz]"),
        (Regex("one\ntwo\r[/]?"), "one\ntwo\r[/]?"),
        (Regex(r"\/\\[äé]"), r"\/\\[äé]"),
        (
            Choices(("yes", "yes, but", 'say "no"\\', "größe\n")),
            r'yes(, but)?|say "no"\\|größe\n'.replace("\\\\", "\\\\"),
        ),
        (Lark('start: "a" (B | "c")\nB: /b+/'), "a(b{1,}|c)"),
        (Lark('root ::= "a" ("b"+ | "c") [0-9]'), "a(b+|c)[0-9]"),
    ],
)
def test_text_fits_its_regular_expression_choice_or_rules(bpe: Tokenizer, wanted: Format, fits: str) -> None:
    found = {text for seed in range(12) if (text := ended(bpe, wanted, seed, 80)) is not None}
    assert found
    assert all(re.fullmatch(fits, text) for text in found), found


def test_any_json_is_an_object(bpe: Tokenizer) -> None:
    walk = followed(bpe, AnyJson())
    assert {bpe.token_bytes(token)[:1] for token in walk.masks()[0]} == {b"{"}


def test_of_thousands_of_choices_one_is_followed_to_its_end(bpe: Tokenizer) -> None:
    walk = followed(bpe, Choices(tuple(f"option {n}" for n in range(20_000))))
    for token in bpe.encode("option 1234", add_special=False):
        assert token in walk.masks()[0]
        walk.take(token)
    assert walk.ends <= walk.masks()[0]
    assert {walk.text + bpe.token_bytes(t) for t in walk.masks()[0] - walk.ends} <= {
        f"option 1234{digit}".encode() for digit in range(10)
    }


def test_an_answer_ends_only_where_the_grammar_does_and_with_any_end(bpe: Tokenizer) -> None:
    ends = [1, 2]
    made = Grammars(bpe, vocab_size=bpe.vocab_size, eos_ids=ends).follow(source_of(Regex("ab?")))
    walk = Followed(made, bpe)
    (first,) = bpe.encode("a", add_special=False)
    assert not walk.masks()[0] & {*ends}
    walk.take(first)
    assert {*ends} <= walk.masks()[0]


@pytest.mark.parametrize("more", [-3, 77, 500])
def test_masks_have_a_bit_for_each_logit_however_many_tokens_there_are(bpe: Tokenizer, more: int) -> None:
    """Embeddings are padded, or lack tokens that were added later."""
    padded = bpe.vocab_size + more
    grammars = Grammars(bpe, vocab_size=padded, eos_ids=sorted(bpe.eos_ids))
    masks = np.full((1, -(-padded // 32)), -1, np.int32)
    assert filled(grammars.follow(source_of(Regex(".*")))(), masks, ()) is None
    bits = np.unpackbits(masks.view(np.uint8), bitorder="little")
    tokens = {*range(min(padded, bpe.vocab_size))} - bpe.special_ids | bpe.eos_ids
    ascii_words = {token for token in tokens if re.fullmatch(rb"[ -~]+", bpe.token_bytes(token))}
    assert ascii_words - bpe.special_ids <= {*np.flatnonzero(bits).tolist()} <= tokens


def test_a_forced_text_that_the_tokenizer_would_write_another_way_is_spelled_as_it_is() -> None:
    """Some bring characters to a canonical form."""
    backend = byte_level()
    backend.normalizer = normalizers.NFC()
    tokenizer, text = wrap(backend), "e\u0301 \u212b"
    assert tokenizer.decode(tokenizer.encode(text, add_special=False), skip_special=False) != text
    assert ended(tokenizer, Choices((text,)), 1) == text


def test_a_token_that_was_not_allowed_is_a_fault(bpe: Tokenizer) -> None:
    walk = followed(bpe, Regex("ab"))
    walk.take(bpe.encode("x", add_special=False)[0])
    masks = np.zeros((1, -(-bpe.vocab_size // 32)), np.int32)
    for _ in range(2):
        assert filled(walk.grammar, masks, ()) == "the answer left its grammar"
    assert walk.grammar.fitting([1]) == 0


# -- drawn first, and asked about afterwards ------------------------------------------------------------


def test_what_may_be_followed_is_what_masks_allow(bpe: Tokenizer) -> None:
    """But for what must follow spelled another way, which a mask does not allow. Asking changes nothing."""
    grammars, chance = grammars_of(bpe), random.Random(5)
    table, told = bpe.table(skip_special=False), Counter[bool]()
    for name, schema in islice(schemas(), 0, None, 9):
        if "schema of the rest" in name:
            continue  # it cannot be counted how many of some names there are
        walk = Followed(grammars.follow(source_of(JsonSchema(schema))), bpe)
        for _ in walk.walk(chance, 25):
            allowed = walk.masks()[0]
            others = [chance.randrange(bpe.vocab_size) for _ in range(4)]
            for token in {*chance.sample(sorted(allowed), min(4, len(allowed))), *others} - walk.ends:
                may = walk.follow([token]) == 1
                told[may] += 1
                if may and token not in allowed:
                    (only,) = allowed
                    assert table[only].startswith(table[token]) or table[token].startswith(table[only])
                else:
                    assert may == (token in allowed)
            assert walk.masks()[0] == allowed
    assert min(told.values()) > 500


def test_what_was_followed_but_not_taken_counts_until_its_place_is_drawn_again(bpe: Tokenizer) -> None:
    walk = followed(bpe, Regex("a[bc]d[ef]"))
    a, b, c, d, e = (bpe.encode(letter, add_special=False)[0] for letter in "abcde")
    assert walk.follow([a, b, e, d]) == 2
    assert walk.follow([d, e], behind=(a, b)) == 2
    assert walk.follow([d, c], behind=(a, c)) == 1  # drawn again
    assert walk.follow([c, d, d]) == 0
    assert walk.follow([a, c, d]) == 3
    walk.take(a)
    assert walk.follow([d], behind=(b,)) == 1
    assert walk.follow([d], behind=(c,)) == 1
    walk.take(b)
    assert walk.follow([d, e]) == 2


def test_chosen_is_the_first_that_may_follow(bpe: Tokenizer) -> None:
    walk = followed(bpe, Regex("a[bc]d"))
    a, b, c, d = (bpe.encode(letter, add_special=False)[0] for letter in "abcd")
    assert walk.choose(0, 0, [d, d, b, a]) == a
    assert walk.choose(1, a, [d, c, b]) == c
    assert walk.choose(2, c, [a, b, c]) is None
    assert walk.choose(2, b, [d]) == d


# -- drafts ---------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), steps=st.integers(0, 12), good=st.integers(0, 6), count=st.integers(0, 6))
@settings(max_examples=80, deadline=None)
def test_drafts_that_fit_are_those_that_the_masks_allow(
    bpe: Tokenizer, seed: int, steps: int, good: int, count: int
) -> None:
    """And looking at them changes nothing."""
    chance = random.Random(seed)
    walk = followed(bpe, JsonSchema(POINT))
    list(islice(walk.walk(chance, steps), steps))
    twin = Followed(walk.made, bpe)
    twin.grammar.take(bpe.encode(walk.text.decode(), add_special=False))
    drafts = [token for token in Followed.walk(twin, chance, good) if token not in walk.ends][:count]
    drafts += [chance.randrange(bpe.vocab_size) for _ in range(count - len(drafts))]

    before = walk.masks()[0]
    after = walk.masks(drafts)
    allowed = next((n for n, draft in enumerate(drafts) if draft not in after[n]), len(drafts))
    assert walk.grammar.fitting(drafts) == allowed
    assert walk.masks()[0] == before == after[0]
    for draft, mask in zip(drafts[:allowed], after[1:], strict=False):
        if draft in walk.ends:
            break  # nothing follows the end
        walk.take(draft)
        assert walk.masks()[0] == mask


def test_drafts_may_end_the_answer(bpe: Tokenizer) -> None:
    walk = followed(bpe, Regex("a"))
    (letter,) = bpe.encode("a", add_special=False)
    end = min(bpe.eos_ids)
    assert walk.grammar.fitting([letter, end, letter]) <= 2
    first, second, _, _ = walk.masks([letter, end, letter])
    assert letter in first
    assert end in second
    walk.take(letter)
    assert end in walk.masks()[0]


# -- from where on it holds -----------------------------------------------------------------------------


def test_a_grammar_behind_a_trigger_lets_everything_be_until_then(bpe: Tokenizer) -> None:
    rules = 'start: "<call>" @answer "</call>"\n'
    make = grammars_of(bpe).follow(
        grammar_source(rules, JsonSchema(POINT)),
        lambda: Trigger(bpe.table(skip_special=False), openers=("<call>",)),
    )
    constraint = make()
    before = bpe.encode("Let me see: {<call", add_special=False)
    assert constraint.take(before) == len(before)
    assert not constraint.active
    opens, late = bpe.encode(">", add_special=False)[0], bpe.encode("abc", add_special=False)
    assert constraint.fitting([opens, *late]) == 0  # what follows is drawn once the grammar holds
    assert constraint.take([opens, *late]) == 1
    assert constraint.active
    walk = Followed(lambda: constraint, bpe)
    assert all(bpe.token_bytes(token)[:1] in (b"{", b" ", b"\n") for token in walk.masks()[0])


def test_what_comes_with_the_opener_in_one_token_is_followed_as_well(bpe: Tokenizer) -> None:
    table = ByteTable(bpe.table(skip_special=False))
    table[5] = b'>{"x":'
    make = grammars_of(bpe).follow(
        grammar_source('start: "<call>" @answer\n', JsonSchema(POINT)),
        lambda: Trigger(table, openers=("<call>",)),
    )
    constraint = make()
    constraint.take(bpe.encode("<call", add_special=False))
    assert constraint.take([5]) == 1
    assert constraint.active
    firsts = {bpe.token_bytes(token).lstrip()[:1] for token in Followed(lambda: constraint, bpe).masks()[0]}
    assert firsts <= {b"%d" % digit for digit in range(10)} | {b""}


def test_a_token_may_be_followed_before_it_is_taken_and_another_one_in_its_place(bpe: Tokenizer) -> None:
    """The opener counts as the grammar spells it, whatever tokens the answer had for it."""
    table = ByteTable(bpe.table(skip_special=False))
    table[5] = b'>{"x":'
    make = grammars_of(bpe).follow(
        grammar_source('start: "<call>" @answer\n', JsonSchema(POINT)),
        lambda: Trigger(table, openers=("<call>",)),
    )
    seven, comma = (bpe.encode(text, add_special=False)[0] for text in ("7", ","))

    def masks_behind(constraint: Grammar, *last: int) -> bytes:
        masks = np.zeros((1, -(-bpe.vocab_size // 32)), np.int32)
        taken = constraint._taken
        assert constraint.fill(masks, taken + bool(last), last[0] if last else 5, ()) is None
        return masks.tobytes()

    constraint, other = make(), make()
    for each in (constraint, other):
        each.take([*bpe.encode("<call", add_special=False), 5])
    opened, behind_seven = masks_behind(constraint), masks_behind(constraint, seven)
    assert masks_behind(constraint) == opened  # the step was undone
    assert masks_behind(constraint, seven) == behind_seven != opened
    constraint.take([seven])
    assert masks_behind(constraint) == behind_seven
    other.take([seven])
    assert masks_behind(other, comma) == masks_behind(constraint, comma)


def test_what_only_looks_like_an_opener_leaves_the_answer_free(bpe: Tokenizer) -> None:
    make = grammars_of(bpe).follow(
        grammar_source('start: "<call>{" @answer\n', JsonSchema(POINT)),
        lambda: Trigger(ByteTable({5: b"<call>?"}), openers=("<call>",)),
    )
    constraint = make()
    assert constraint.take([5]) == 1
    assert not constraint.active


def test_an_answer_that_goes_on_wrongly_with_the_end_of_its_thinking_is_a_fault(bpe: Tokenizer) -> None:
    table = ByteTable(bpe.table(skip_special=False))
    table[5] = b"</think>Hello"
    make = grammars_of(bpe).follow(
        source_of(JsonSchema(POINT)), lambda: Trigger(table, think=("<think>", "</think>"), thinking=True)
    )
    constraint = make()
    assert constraint.take([5]) == 1
    assert constraint.active
    masks = np.zeros((1, -(-bpe.vocab_size // 32)), np.int32)
    assert filled(constraint, masks, ()) == "the answer left its grammar"


# -- compiled once --------------------------------------------------------------------------------------


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that are compiled from here on."""
    sources: list[str] = []
    compile_ = Grammars._compile

    def counted(self: Grammars, source: str, limits: Any) -> Any:
        sources.append(source)
        return compile_(self, source, limits)

    monkeypatch.setattr(Grammars, "_compile", counted)
    return sources


def test_the_same_source_is_compiled_once_and_its_answers_do_not_meet(
    bpe: Tokenizer, compiled: list[str]
) -> None:
    grammars = grammars_of(bpe)
    source = source_of(JsonSchema(POINT))
    assert not grammars.knows(source)
    first, second = (Followed(grammars.follow(source), bpe) for _ in range(2))
    assert len(compiled) == 1
    assert grammars.knows(source)
    list(islice(first.walk(random.Random(1), 3), 3))
    assert second.masks() == Followed(second.made, bpe).masks()


def test_what_was_used_longest_ago_is_forgotten_where_there_are_too_many(
    bpe: Tokenizer, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_module, "MOST_KEPT", 2)
    grammars = grammars_of(bpe)
    one, two, three = (source_of(Regex(letter)) for letter in "abc")
    for source in (one, two, one, three):
        grammars.follow(source)
    assert [grammars.knows(source) for source in (one, two, three)] == [True, False, True]
    grammars.follow(two)
    assert len(compiled) == 4


def test_their_sources_are_bounded_together(bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [source_of(Choices((letter * 100,))) for letter in "abcd"]
    monkeypatch.setattr(grammar_module, "KEPT_CHARS", 2 * len(sources[0]))
    grammars = grammars_of(bpe)
    for source in sources:
        grammars.follow(source)
    assert [grammars.knows(source) for source in sources] == [False, False, True, True]


def test_many_threads_may_compile_at_once(bpe: Tokenizer, compiled: list[str]) -> None:
    grammars = grammars_of(bpe)
    sources = [source_of(JsonSchema({"const": n % 7})) for n in range(56)]
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(grammars.follow, sources))
    for n, make in enumerate(made):
        firsts = {bpe.token_bytes(token)[:1] for token in Followed(make, bpe).masks()[0]}
        assert firsts == {b"%d" % (n % 7)}
    assert 7 <= len(compiled) <= 56
    assert sum(map(grammars.knows, set(sources))) == 7


# -- what is refused ------------------------------------------------------------------------------------

LOOP: Schema = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
REFUSED: list[tuple[Format, str]] = [
    *(
        (JsonSchema(schema), f"uses {keyword}, which answers cannot be held to")
        for keyword, schema in {
            "uniqueItems": {"type": "array", "uniqueItems": True},
            "propertyNames": {"type": "object", "propertyNames": {"maxLength": 3}},
            "contains": {"type": "array", "contains": {}},
            "not": {"not": {"type": "string"}},
            "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
            "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
            "if, then": {"if": {"type": "string"}, "then": {"maxLength": 2}},
        }.items()
    ),
    (JsonSchema({"oneOf": [{"type": "integer"}, {"type": "integer", "minimum": 3}]}), "oneOf"),
    (JsonSchema({"type": "string", "format": "colour"}), "Unknown format: colour"),
    (JsonSchema({"type": "text"}), "Invalid type: text"),
    (JsonSchema({"type": "string", "pattern": "("}), "unclosed group"),
    (JsonSchema({"type": "string", "pattern": "(?=a)"}), "look-around"),
    (JsonSchema({"$ref": "https://example.org/x"}), "https://example.org/x"),
    (JsonSchema({"$ref": "#/$defs/missing"}), "/$defs/missing"),
    (JsonSchema({"$ref": "#"}), "describes nothing"),
    (JsonSchema(LOOP), "describes nothing"),
    (JsonSchema(False), "Unsatisfiable"),
    (JsonSchema({"enum": []}), "Unsatisfiable"),
    (JsonSchema({"type": "integer", "minimum": 3, "maximum": 2}), "minimum (3) is greater than maximum (2)"),
    (JsonSchema({"type": "string", "minLength": 3, "maxLength": 2}), "minLength (3)"),
    (JsonSchema({"type": "object", "required": ["a"], "additionalProperties": False}), "'a'"),
    (Regex("(a"), "invalid regex"),
    (Regex(r"a\b"), "not supported"),
    (Regex("a" * 40_000), "too large"),
    (Lark(""), "cannot be read as GBNF"),
    (Lark("root ::= [[["), "cannot be read as GBNF"),
    (Lark("root ::= " + "(" * 3000 + '"a"' + ")" * 3000), "cannot be read as GBNF"),
    (Lark('start: "a" other'), "other"),
    (Lark("start: " + "(" * 5000 + '"a"' + ")" * 5000), "too deeply nested"),
    (Lark("start: start"), "describes nothing"),
    (Lark("start: " + '"a"' * 20_000), "too large"),
    (Choices(tuple(f"{n}" * 20 for n in range(20_000))), "too large"),
]


@pytest.mark.parametrize(("wanted", "why"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_held_to_is_refused_in_a_line_that_says_why(
    bpe: Tokenizer, wanted: Format, why: str
) -> None:
    with pytest.raises(RequestError) as caught:
        grammars_of(bpe).follow(source_of(wanted))
    told = str(caught.value)
    assert why in told
    assert len(told) < 400
    assert "\n" not in told
    assert caught.value.code == "invalid_grammar"


def test_a_lenient_schema_is_held_to_as_far_as_that_goes(bpe: Tokenizer) -> None:
    schema = {"type": "array", "items": {"const": 1}, "uniqueItems": True, "minItems": 1, "maxItems": 1}
    assert json.loads(ended(bpe, JsonSchema(schema, strict=False), 1) or "") == [1]


def test_a_schema_that_nests_too_deeply_to_be_written_is_refused() -> None:
    schema: Any = {}
    for _ in range(3000):
        schema = {"items": schema}
    with pytest.raises(RequestError, match="nested too deeply"):
        source_of(JsonSchema(schema))


# -- what would hurt ------------------------------------------------------------------------------------

BELOW = -(10**20)


@pytest.mark.parametrize("keyword", ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"])
@pytest.mark.parametrize("bound", [BELOW, -(2**63), -1e300])
def test_a_bound_below_64_bits_is_refused_before_it_can_end_the_process(
    bpe: Tokenizer, keyword: str, bound: float
) -> None:
    schema = {"type": "integer", "minimum": BELOW, "maximum": BELOW, keyword: bound}
    with pytest.raises(RequestError, match="64 bits"):
        grammars_of(bpe).follow(source_of(JsonSchema({"items": schema})))
    with pytest.raises(RequestError, match="64 bits"):
        grammars_of(bpe).follow(source_of(Lark(f"start: %json {json.dumps(schema)}")))
    with pytest.raises(RequestError, match="64 bits"):
        grammars_of(bpe).follow(grammar_source(f"start: %json {json.dumps(schema)}\n", None))


def test_upper_bounds_beyond_64_bits_bind_nobody(bpe: Tokenizer) -> None:
    schema = {"type": "integer", "minimum": 0, "maximum": 2**64 - 1}
    text = ended(bpe, JsonSchema(schema), 1)
    assert text is not None
    assert int(text) >= 0


def chain(links: int, last: Schema, link: Callable[[Schema], Schema]) -> Schema:
    defs = {f"d{n}": link({"$ref": f"#/$defs/d{n + 1}"}) for n in range(links)}
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{links}": last}}


NULL: Schema = {"type": "null"}
BOMBS: dict[str, Format] = {
    "references in a row": JsonSchema(chain(10_000, NULL, lambda next_one: next_one)),
    "lists in a row": JsonSchema(chain(8_000, NULL, lambda next_one: {"type": "array", "items": next_one})),
    "unions in a row": JsonSchema(chain(3_000, NULL, lambda next_one: {"anyOf": [NULL, next_one]})),
    "twice as much each": JsonSchema(chain(40, NULL, lambda n: {"anyOf": [{"const": 1}, n, n]})),
    "objects of two each": JsonSchema(
        chain(40, NULL, lambda n: {"type": "object", "properties": {"a": n, "b": n}, "required": ["a", "b"]})
    ),
    "combinations": JsonSchema({"allOf": [{"anyOf": [{"minimum": n}, {"maximum": -n}]} for n in range(25)]}),
    "many properties": JsonSchema({"type": "object", "properties": {f"p{n}": NULL for n in range(2_000)}}),
    "large multiples": JsonSchema(
        {"allOf": [{"type": "integer", "multipleOf": p} for p in (1009, 1013, 1019)]}
    ),
    "long": JsonSchema({"type": "string", "minLength": 10**9}),
    "lists of lists": JsonSchema(
        {"type": "array", "minItems": 10**6, "items": {"type": "array", "minItems": 10**6}}
    ),
    "repetitions": Regex("(((a{1,1000}){1,1000}){1,1000})"),
    "states": Regex("(a|b)*a(a|b){30}"),
    "what may be anywhere": Regex("(.*a){20}|(.*b){20}|.*e.{20}"),
    "rules in a row": Lark(
        "start: r0\n" + "".join(f"r{n}: r{n + 1}\n" for n in range(2_000)) + 'r2000: "a"\n'
    ),
    "terminals in a row": Lark(
        "start: T0\n" + "".join(f'T{n}: T{n + 1} "a"\n' for n in range(1_500)) + 'T1500: "a"\n'
    ),
    "every way to read it": Lark("start: s\ns: s s s | s s | /[a-z ]/ | "),
    "two ways to read it": Lark("start: s\ns: s s | /[a-z ]/"),
    "intersections": Lark("start: T\nT: " + " & ".join(f"/.*{letter}.*/" for letter in "abcdefghijklmnop")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_grammars_that_explode_are_refused_or_followed_or_a_fault_of_their_answer(
    bpe: Tokenizer, name: str
) -> None:
    """Each in a bounded time: not one mask may take seconds, nor all of them together."""
    with ThreadPoolExecutor(1) as thread:  # as the server does it: what compiles is not what follows
        making = thread.submit(grammars_of(bpe).follow, source_of(BOMBS[name]))
        try:
            grammar = making.result(MOST_SECONDS)()
        except RequestError:
            return
        assert thread.submit(followed_until_a_fault, grammar, bpe, 40).result(MOST_SECONDS) in (
            None,
            "the grammar is too complex to follow here",
        )


def followed_until_a_fault(grammar: Grammar, tokenizer: Tokenizer, most: int) -> str | None:
    chance = random.Random(5)
    for _ in range(most):
        masks = np.zeros((1, -(-tokenizer.vocab_size // 32)), np.int32)
        if (fault := filled(grammar, masks, ())) is not None:
            return fault
        bits = np.unpackbits(masks.view(np.uint8), bitorder="little")[: tokenizer.vocab_size]
        token = int(chance.choice(np.flatnonzero(bits)))
        if token in tokenizer.eos_ids:
            return None
        grammar.take([token])
    return None
