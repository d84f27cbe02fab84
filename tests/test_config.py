"""What is written in a configuration is what runs, and what cannot run is told before anything starts."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed.api.options import KeyOptions
from tokenspeed.config import FIELDS, NAMED, TABLES, Config, check, load
from tokenspeed.errors import ConfigError

unhurried = settings(deadline=None)  # a busy machine may take its time
ROOT = Path(__file__).parent.parent
DEFAULT = ROOT / "config" / "default.toml"
KEYS = [(table, key) for table, options in FIELDS.items() for key in options]
DIGEST = "0123456789abcdef" * 4

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a configuration file; its name in errors is `my.toml`."""
    monkeypatch.chdir(tmp_path)

    def file(text: str) -> Path:
        Path("my.toml").write_text(text, encoding="utf-8")
        return Path("my.toml")

    return file


def problems(path: Path | None, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value).split("\n")


def told(override: str) -> str:
    """The problems of an override, "" if there are none."""
    try:
        load(None, [override])
    except ConfigError as error:
        return str(error)
    return ""


# -- what a file says ---------------------------------------------------------------------------------


def test_without_a_file_every_option_has_its_default() -> None:
    assert load(None) == Config()


def test_a_file_sets_what_it_names_and_nothing_else(write: Write) -> None:
    path = write('[server]\nport = 9000\n[cache]\nprefix = false\n[model.sha256]\n"a.b" = "' + DIGEST + '"\n')
    default = Config()
    assert load(path) == replace(
        default,
        server=replace(default.server, port=9000),
        cache=replace(default.cache, prefix=False),
        model=replace(default.model, sha256={"a.b": DIGEST}),
    )


def test_a_whole_number_is_a_number(write: Write) -> None:
    seconds = load(write("[server]\ndrain_seconds = 3\n")).server.drain_seconds
    assert (seconds, type(seconds)) == (3.0, float)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[cache]\nblok_size = 16", "[cache] has no key 'blok_size'; did you mean 'block_size'?"),
        ("[server]\nblock_size = 16", "[server] has no key 'block_size'; it belongs to [cache]"),
        (
            "[cache]\nzzz = 1",
            "[cache] has no key 'zzz'; there is 'block_size', 'memory_mib', 'prefix'",
        ),
        ("[cahce]", "there is no table [cahce]; did you mean [cache]?"),
        ("[cahce.more]", "there is no table [cahce]; did you mean [cache]?"),
        ("port = 1", "'port' stands outside of a table; it belongs to [server]"),
        (
            "zzz = 1",
            f"'zzz' stands outside of a table; the tables are {', '.join(TABLES)}",
        ),
        ("cache = 1", "cache = 1 must be a table, [cache]"),
        (
            "[[cache]]\nblock_size = 16",
            "cache = [{'block_size': 16}] must be a table, [cache]",
        ),
        (
            "[cache]\nblock_size = 7",
            "[cache] block_size = 7 is out of range; it must be from 8 to 256, the nearest is 8",
        ),
        (
            "[server]\nport = 70000",
            "[server] port = 70000 is out of range; it must be from 0 to 65535, the nearest is 65535",
        ),
        (
            "[server]\nport = '80'",
            "[server] port = '80' is a string; it must be an integer from 0 to 65535, such as 8000",
        ),
        (
            "[server]\nport = true",
            "[server] port = true is a boolean; it must be an integer from 0 to 65535, such as 8000",
        ),
        (
            "[server]\nport = 80.0",
            "[server] port = 80.0 is a number; it must be an integer from 0 to 65535, such as 8000",
        ),
        (
            "[server]\nport = [1]",
            "[server] port = [1] is an array; it must be an integer from 0 to 65535, such as 8000",
        ),
        (
            "[cache]\nprefix = 1",
            "[cache] prefix = 1 is an integer; it must be true or false, such as true",
        ),
        (
            "[server]\nping_seconds = false",
            "[server] ping_seconds = false is a boolean; it must be a number from 1.0 to 300.0, such as 15.0",
        ),
        ("[server]\nping_seconds = nan", "[server] ping_seconds = nan must be a finite number"),
        ("[server]\nping_seconds = -inf", "[server] ping_seconds = -inf must be a finite number"),
        (
            "[server]\nping_seconds = 1" + "0" * 400,
            "[server] ping_seconds = 1" + "0" * 56 + "... must be a finite number",
        ),
        ('["a\\nb"]', "there is no table [a?b]; there is " + ", ".join(f"[{table}]" for table in TABLES)),
        ("[server]\nhost = 1", "[server] host = 1 is an integer; it must be a string, such as '127.0.0.1'"),
        (
            "[model]\npath = 1979-05-27",
            "[model] path = datetime.date(1979, 5, 27) is a date or time; it must be a string",
        ),
        (
            '[model]\nname = "a\\nb"',
            "[model] name = 'a\\nb' has a character that cannot be printed; write it on one line",
        ),
        (
            "[model]\ndtype = 'bfloat'",
            "[model] dtype = 'bfloat' is not one of its values; did you mean 'bfloat16'?",
        ),
        (
            "[model]\ndtype = 'q4'",
            "[model] dtype = 'q4' is not one of its values; "
            "there is 'auto', 'bfloat16', 'float16', 'float32'",
        ),
        ("[model.sha256]\na = 1", "[model] sha256 = {'a': 1} is a table; it must be a table of strings"),
        (
            "[model.sha256]\n'a.bin' = 'abc'",
            "[model] sha256 of 'a.bin' must be 64 lower-case hex digits, not 3 characters",
        ),
        (
            f"[model.sha256]\n'a.bin' = '{DIGEST[1:]}g'",
            "[model] sha256 of 'a.bin' must be 64 lower-case hex digits, not other characters",
        ),
        ("[server]\nhost = ''", "[server] host must name an address to listen on, such as '127.0.0.1'"),
        *(
            (
                f"[device]\nname = '{name}'",
                "[device] name must be one of auto, cpu, cuda, cuda:0, cuda:1, ...",
            )
            for name in ("gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "")
        ),
        (
            "[model]\nrevision = 'v1'",
            "[model] revision has no effect on the built-in model; set [model] path as well",
        ),
        ("[cache", "is not TOML: Expected ']' at the end of a table declaration (at end of document)"),
        ("[cache]\na = \nb = 1", "is not TOML: Invalid value (at line 2, column 5)"),
        (
            "[cache]\nprefix = true\nprefix = true",
            "is not TOML: Cannot overwrite a value (at end of document)",
        ),
    ],
)
def test_what_is_wrong_is_told_with_the_nearest_right(text: str, told: str, write: Write) -> None:
    assert problems(write(text)) == [f"my.toml: {told}"]


def test_all_problems_are_told_at_once(write: Write) -> None:
    path = write("[cash]\n[cache]\nblock_size = 7\nprefix = 2\n[server]\nprot = 1\n")
    expected = [
        "my.toml: there is no table [cash]; did you mean [cache]?",
        "my.toml: [server] has no key 'prot'; did you mean 'port'?",
        "my.toml: [cache] block_size = 7 is out of range; it must be from 8 to 256, the nearest is 8",
        "my.toml: [cache] prefix = 2 is an integer; it must be true or false, such as true",
        "--set limits.max_stops=x: [limits] max_stops = 'x' is a string; "
        "it must be an integer from 0 to 1024, such as 16",
    ]
    assert problems(path, "limits.max_stops=x") == expected
    assert check(path) == expected[:-1]


def test_a_sound_file_has_no_problems(write: Write) -> None:
    assert check(write("[server]\nport = 1\n")) == []


def test_a_file_that_cannot_be_read_is_told(write: Write) -> None:
    folder = write("").parent.resolve()
    Path("binary.toml").write_bytes(b"a\xff")
    assert check(Path("none.toml")) == ["none.toml: cannot be read: No such file or directory"]
    assert check(folder) == [f"{folder}: cannot be read: Is a directory"]
    assert check(Path("binary.toml")) == ["binary.toml: is not UTF-8 text (byte 1)"]


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 5000, "[cache]\nblock_size = " + "9" * 5000, "a = 2020-13-45"]
)
def test_what_only_breaks_the_parser_is_told_in_one_line(text: str, write: Write) -> None:
    (line,) = problems(write(text))
    assert line.startswith("my.toml: is not TOML: ")


@unhurried
@given(
    text=st.text(st.characters(codec="utf-8"), max_size=40),
    table=st.sampled_from(list(TABLES)),
    data=st.data(),
)
def test_no_value_whatever_ends_in_anything_but_options_or_problems(
    text: str, table: str, data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from(list(FIELDS[table])))
    value = data.draw(st.sampled_from(["", "'", '"', "{", "-", "1e999", "0x", "[", "true"]))
    for override in (f"{table}.{key}={value}{text}", f"{table}.{text}={value}", f"{text}{table}", text):
        assert told(override).isprintable()  # so it is one line


# -- tables with names, and their secrets -------------------------------------------------------------


def test_every_key_has_a_table_with_its_name(write: Write) -> None:
    path = write("[keys.alice]\nsecret = 'sk-alice-1'\npriority = -2\n[keys.bob-2]\nsecret = 'sk-bob-22'\n")
    config = load(path, ["keys.bob-2.share=3", "keys.carol.secret=12345678"])
    assert config.keys == {
        "alice": KeyOptions("sk-alice-1", priority=-2),
        "bob-2": KeyOptions("sk-bob-22", share=3.0),
        "carol": KeyOptions("12345678"),
    }
    assert "sk-" not in repr(config)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("keys = 'hunter222'", "keys must hold tables with names, such as [keys.alice]"),
        (
            "[keys]\nsecret = 'hunter222'",
            "[keys] secret belongs in a table with a name, such as [keys.alice]",
        ),
        ("[keys]\nalice = 'hunter222'", "keys.alice must be a table, [keys.alice]"),
        (
            "[keys.'a b']\nsecret = 'hunter222'",
            "[keys.'a b'] must be named with 1 to 64 letters, digits, '-' and '_'",
        ),
        ("secret = 'hunter222'", "'secret' stands outside of a table; it belongs to [keys.NAME]"),
        ("[server]\nsecret = 'hunter222'", "[server] has no key 'secret'; it belongs to [keys.NAME]"),
        ("[keys.a]\nsecert = 'hunter222'", "[keys.a] has no key 'secert'; did you mean 'secret'?"),
        ("[keys.a]\nsecret = 1231231234", "[keys.a] secret is an integer; it must be a string"),
        (
            "[keys.a]\nsecret = 'hunter\u200b222'",
            "[keys.a] secret has a character that cannot be printed; write it on one line",
        ),
        ("[keys.a]\nshare = 2", "[keys.a] secret must be set: it is what clients send"),
        (
            "[keys.a]\nsecret = 'hunter2'",
            "[keys.a] secret must have 8 characters at least, of printable ASCII without spaces",
        ),
        (
            "[keys.a]\nsecret = 'hunter 222'",
            "[keys.a] secret must have 8 characters at least, of printable ASCII without spaces",
        ),
        (
            "[keys.a]\nsecret = 'hunter222'\n[keys.b]\nsecret = 'hunter222'",
            "[keys.b] secret is that of [keys.a] as well; each key needs its own",
        ),
        (
            "[keys.a]\nsecret = 'hunter222'\npriority = 11",
            "[keys.a] priority = 11 is out of range; it must be from -10 to 10, the nearest is 10",
        ),
        (
            "[keys.a]\nsecret = 'hunter222'\nshare = 0",
            "[keys.a] share = 0.0 is out of range; it must be from 0.001 to 1000.0, the nearest is 0.001",
        ),
    ],
)
def test_what_is_wrong_with_a_key_is_told_without_its_secret(text: str, told: str, write: Write) -> None:
    (line,) = problems(write(text))
    assert line == f"my.toml: {told}"
    assert "hunter" not in line
    assert "1231231234" not in line


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("keys.a.secret=hunter2", "[keys.a] secret must have 8 characters at least"),
        ("keys.secret=hunter222", "must be written keys.NAME.key=value"),
        ("keys.a b.secret=hunter222", "[keys.'a b'] must be named with"),
        ("keys.a.secret.more=hunter222", "[keys.a] has no key 'secret.more'"),
    ],
)
def test_an_override_of_a_key_is_named_without_its_secret(override: str, told: str) -> None:
    (line,) = problems(None, override)
    assert line.startswith(f"--set {override.partition('=')[0]}: {told}")
    assert "hunter" not in line


# -- what only works together -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "idle"),
    [
        ("policy = 'first-come'\nageing_seconds = 2", "[scheduler] ageing_seconds"),
        ("policy = 'shortest-first'\nageing_seconds = 1", "[scheduler] ageing_seconds"),
        ("policy = 'priority'\nageing_seconds = 0", "[scheduler] ageing_seconds"),
        (
            "policy = 'first-come'\n[keys.a]\nsecret = 'hunter222'\npriority = 1",
            "[keys.a] priority",
        ),
    ],
)
def test_what_has_no_effect_under_a_policy_is_told(text: str, idle: str, write: Write) -> None:
    (line,) = problems(write(f"[scheduler]\n{text}\n"))
    assert line.startswith(f"my.toml: {idle} has no effect under [scheduler] policy = ")


@pytest.mark.parametrize(
    ("drafter", "idle"),
    [
        ("off", "draft = 'x'"),
        ("off", "most_drafts = 7"),
        ("off", "control = 'adaptive'"),
        ("off", "other_answers = true"),
        ("ngram", "draft = 'x'"),
        ("model", "other_answers = true"),
    ],
)
def test_what_has_no_effect_on_a_drafter_is_told(drafter: str, idle: str, write: Write) -> None:
    (line,) = problems(write(f"[speculation]\ndrafter = '{drafter}'\n{idle}\n"))
    key = idle.partition(" ")[0]
    assert line == (
        f"my.toml: [speculation] {key} has no effect with drafter = '{drafter}'; leave one of them out"
    )


@pytest.mark.parametrize("idle", ["store_path = 'x'", "max_stored_mib = 1", "max_age_hours = 1"])
def test_what_has_no_effect_where_nothing_is_kept_is_told(idle: str, write: Write) -> None:
    (line,) = problems(write(f"[responses]\nstore = false\n{idle}\n"))
    key = idle.partition(" ")[0]
    assert line == f"my.toml: [responses] {key} has no effect with store = false; leave one of them out"


def test_what_has_no_effect_without_a_target_is_told(write: Write) -> None:
    (line,) = problems(write("[scheduler]\ntarget_step_ms = 0\nlone_overhead = 0.1\n"))
    assert line == (
        "my.toml: [scheduler] lone_overhead has no effect with target_step_ms = 0; leave one of them out"
    )


@pytest.mark.parametrize("policy", ["short-first", "first-come", "priority", "shortest-first"])
def test_every_policy_can_be_chosen_alone(policy: str) -> None:
    assert load(None, [f"scheduler.policy={policy}"]).scheduler.policy == policy


# -- what `--set` says --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("server.port=9000", 9000),
        (" server.port = 9_000 ", 9000),
        ("server.drain_seconds=0", 0.0),
        ("server.host=::1", "::1"),
        ("server.host='::1'", "::1"),
        ("model.path=/models/a=b c", "/models/a=b c"),
        ("model.name=123", "123"),
        ("model.name=true", "true"),
        ('model.name="true"', "true"),
        ("model.name=", ""),
        ("cache.prefix=false", False),
        ('model.sha256={"a.bin" = "' + DIGEST + '"}', {"a.bin": DIGEST}),
        (f"model.sha256.a.bin={DIGEST}", {"a.bin": DIGEST}),
    ],
)
def test_an_override_sets_one_key(override: str, expected: Any) -> None:
    table, key = override.split("=")[0].strip().split(".")[:2]
    value = getattr(getattr(load(None, [override]), table), key)
    assert (value, type(value)) == (expected, type(expected))


def test_an_override_goes_before_the_file_and_before_what_it_overrides(write: Write) -> None:
    path = write(f"[server]\nport = 'wrong'\n[model]\nsha256 = {{ a = '{DIGEST}' }}\n")
    config = load(path, ["server.port=1", "server.port=2", f"model.sha256.b={DIGEST[::-1]}"])
    assert config.server.port == 2
    assert config.model.sha256 == {"a": DIGEST, "b": DIGEST[::-1]}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("server", "must be written table.key=value"),
        ("port=1", "must be written table.key=value"),
        ("=", "must be written table.key=value"),
        ("server.=1", "must be written table.key=value"),
        ("srver.port=1", "there is no table [srver]; did you mean [server]?"),
        ("server.prt=1", "[server] has no key 'prt'; did you mean 'port'?"),
        ("server.port.more=1", "[server] has no key 'port.more'; did you mean 'port'?"),
        (
            "server.port=1 2",
            "[server] port = '1 2' is a string; it must be an integer from 0 to 65535, such as 8000",
        ),
        ("cache.prefix=yes", "[cache] prefix = 'yes' is a string; it must be true or false, such as true"),
    ],
)
def test_an_override_that_is_wrong_is_named(override: str, told: str) -> None:
    assert problems(None, override) == [f"--set {override}: {told}"]


def test_an_override_cannot_smuggle_in_a_second_key() -> None:
    (line,) = problems(None, "server.port=1\nhost = '0.0.0.0'")
    assert line.startswith("--set server.port=1?host = '0.0.0.0': [server] port = ")


# -- config/default.toml ------------------------------------------------------------------------------


def uncommented() -> str:
    """The default file with its example of a table with a name, which is at its end, in force."""
    text, marker, example = DEFAULT.read_text(encoding="utf-8").partition("# [keys.alice]")
    return text + "\n".join(line.removeprefix("# ") for line in (marker + example).split("\n"))


def comment(table: str, key: str) -> str:
    """The comment that stands directly above a key."""
    lines = uncommented().split("\n")
    section = lines.index(f"[{table}.alice]" if table in NAMED else f"[{table}]")
    place = next(i for i in range(section, len(lines)) if lines[i].startswith(f"{key} = "))
    above = takewhile(lambda line: line.startswith("# "), reversed(lines[:place]))
    return " ".join(line.removeprefix("# ") for line in reversed(list(above)))


def test_the_default_file_is_the_defaults_in_the_code() -> None:
    raw = tomllib.loads(DEFAULT.read_text(encoding="utf-8"))
    assert raw == asdict(Config())
    assert [list(raw[table]) for table in raw] == [
        [] if table in NAMED else list(FIELDS[table]) for table in TABLES
    ]  # and in their order
    assert load(DEFAULT) == Config()


def test_the_example_of_a_key_in_the_default_file_is_the_defaults_in_the_code() -> None:
    assert tomllib.loads(uncommented())["keys"] == {"alice": asdict(KeyOptions())}


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_every_key_of_the_default_file_says_what_it_does_and_what_it_may_be(table: str, key: str) -> None:
    text, bounds = comment(table, key), FIELDS[table][key].metadata
    assert len(text.split()) >= 6
    assert text.endswith((".", "429", "413"))
    if "at_least" in bounds:
        low, high = (
            format(bounds[name], "g" if isinstance(bounds[name], float) else "_")
            for name in ("at_least", "at_most")
        )
        assert re.search(rf": {low} to {high}\.", text)
    assert all(choice in text for choice in bounds.get("choices", ()))


# -- every option is used -----------------------------------------------------------------------------


def reads(tree: ast.AST) -> set[tuple[str, str]]:
    """Every `x.y` in a module, by the last name of x: `config.cache.prefix` is ("cache", "prefix")."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            found.add((name.lstrip("_"), node.attr))
    return found


@pytest.fixture(scope="module")
def all_reads() -> set[tuple[str, str]]:
    modules = [path for path in (ROOT / "tokenspeed").rglob("*.py") if path != ROOT / "tokenspeed/config.py"]
    return set().union(*(reads(ast.parse(path.read_text(encoding="utf-8"))) for path in modules))


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_every_option_is_read_somewhere(table: str, key: str, all_reads: set[tuple[str, str]]) -> None:
    owners = {"options", table, f"{table}_options"}  # tables with names are read one by one, as options
    if not any((owner, key) in all_reads for owner in owners):
        pytest.fail(f"[{table}] {key} is accepted and ignored")
