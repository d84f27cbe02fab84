"""A TOML file to the frozen options of each layer, strictly: whatever is wrong is told, all of it at once.

Each layer declares its own options with their bounds; here they get a table name, a file and good errors.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from tokenspeed.api.options import KeyOptions, ResponsesOptions, ServerOptions
from tokenspeed.core.policy import POLICIES, SchedulerOptions
from tokenspeed.core.speculation import SpeculationOptions
from tokenspeed.errors import ConfigError
from tokenspeed.generation.embedding import EmbeddingOptions
from tokenspeed.generation.request import Limits
from tokenspeed.generation.style import ParsingOptions
from tokenspeed.model.options import DEVICE_NAMES, CacheOptions, DeviceOptions, KernelOptions, ModelOptions


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be set, one field for each table of the file; `keys` holds tables with names."""

    server: ServerOptions = field(default_factory=ServerOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    parsing: ParsingOptions = field(default_factory=ParsingOptions)
    cache: CacheOptions = field(default_factory=CacheOptions)
    device: DeviceOptions = field(default_factory=DeviceOptions)
    kernels: KernelOptions = field(default_factory=KernelOptions)
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
    speculation: SpeculationOptions = field(default_factory=SpeculationOptions)
    embeddings: EmbeddingOptions = field(default_factory=EmbeddingOptions)
    limits: Limits = field(default_factory=Limits)
    responses: ResponsesOptions = field(default_factory=ResponsesOptions)
    keys: Mapping[str, KeyOptions] = field(default_factory=dict)


class Setting(NamedTuple):
    """A value as somebody wrote it, and where: a file, or the `--set` that overrides it."""

    value: Any
    source: str


class _Invalid(Exception):  # noqa: N818  (never leaves this module)
    """What is wrong with a value, to be told behind its key and, unless it is secret, the value."""

    def __init__(self, value: Any, problem: str) -> None:
        super().__init__(problem)
        self.value = value


_HINTS: Mapping[str, Any] = get_type_hints(Config)
# Tables that hold any number of tables of one kind, as in [keys.alice]; the others hold options themselves.
NAMED = frozenset(table for table, hint in _HINTS.items() if get_origin(hint) is Mapping)
TABLES: Mapping[str, type[Any]] = {
    table: get_args(hint)[1] if table in NAMED else hint for table, hint in _HINTS.items()
}
FIELDS: Mapping[str, Mapping[str, Field[Any]]] = {
    table: {option.name: option for option in fields(cls)} for table, cls in TABLES.items()
}
TYPES: Mapping[str, Mapping[str, Any]] = {table: get_type_hints(cls) for table, cls in TABLES.items()}
NAME = re.compile("[A-Za-z0-9_-]{1,64}")
LEAST_SECRET = 8  # characters

_Settings = dict[str, dict[str, Setting]]  # by table, that with a name as "keys.alice"


def load(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration in the file at `path` (None: the defaults), with `table.key=value` overrides.

    Raises one `ConfigError` that tells every problem there is, one a line.
    """
    problems: list[str] = []
    settings: _Settings = {table: {} for table in TABLES if table not in NAMED}
    if path is not None:
        _read_file(path, settings, problems)
    for override in overrides:
        _read_override(override, settings, problems)
    tables: dict[str, Any] = {table: {} for table in NAMED}
    for table in settings:
        home, _, name = table.partition(".")
        options = _build(table, settings[table], problems)
        if name:
            tables[home][name] = options
        else:
            tables[home] = options
    if not problems:
        config = Config(**tables)
        problems = [problem for rule in CHECKS for problem in rule(config, settings)]
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def check(path: Path, overrides: Sequence[str] = ()) -> list[str]:
    """All problems of a configuration file, one line each; none if it can be served."""
    try:
        load(path, overrides)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def _read_file(path: Path, settings: _Settings, problems: list[str]) -> None:
    source = str(path)
    try:
        raw = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        problems.append(f"{source}: cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        problems.append(f"{source}: is not UTF-8 text (byte {error.start})")
    except (ValueError, RecursionError) as error:
        problems.append(f"{source}: is not TOML: {_one_line(error)}")
    else:
        for table, content in raw.items():
            if table not in TABLES:
                problems.append(f"{source}: {_unknown_table(table, content)}")
            elif table not in NAMED:
                _read_table(source, table, content, settings, problems)
            elif not isinstance(content, dict):
                problems.append(f"{source}: {table} must hold tables with names, such as [{table}.alice]")
            else:
                for name, inner in content.items():
                    _read_table(source, f"{table}.{name}", inner, settings, problems)


def _read_table(source: str, table: str, content: Any, settings: _Settings, problems: list[str]) -> None:
    home, dot, name = table.partition(".")
    if dot and not NAME.fullmatch(name):
        problems.append(f"{source}: {_bad_name(home, name)}")
    elif isinstance(content, dict):
        settings[table] = {key: Setting(value, source) for key, value in content.items()}
    elif name in FIELDS[home]:
        problems.append(f"{source}: [{home}] {name} belongs in a table with a name, such as [{home}.alice]")
    else:
        shown = table if dot else f"{table} = {_show(content)}"  # what has a name may be a secret
        problems.append(f"{source}: {shown} must be a table, [{table}]")


def _read_override(override: str, settings: _Settings, problems: list[str]) -> None:
    name, equals, text = override.partition("=")
    table, dot, key = name.strip().partition(".")
    named = table in NAMED
    source = f"--set {_clip(name.strip() if named else override)}"  # what has a name may be a secret
    if named:
        inner, dot, key = key.partition(".")
        table = f"{table}.{inner}"
    home = table.partition(".")[0]
    if not (equals and dot and home and key):
        problems.append(f"{source}: must be written {f'{home}.NAME' if named else 'table'}.key=value")
    elif home not in TABLES:
        problems.append(f"{source}: {_unknown_table(table, {})}")
    elif named and not NAME.fullmatch(inner):
        problems.append(f"{source}: {_bad_name(home, inner)}")
    else:
        values = settings.setdefault(table, {})
        key, dot, entry = key.partition(".")
        hint = TYPES[home].get(key)
        if dot and hint == dict[str, str]:  # one entry of a table, whose name may have dots of its own
            known = values.get(key)
            value: Any = {
                **(known.value if known and isinstance(known.value, dict) else {}),
                entry: text.strip(),
            }
        else:
            key += dot + entry
            value = _parse(text.strip(), hint)
        values[key] = Setting(value, source)


def _parse(text: str, hint: Any) -> Any:
    """An override's value as TOML has it; what is meant for a string needs no quotes."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    if parsed.keys() != {"value"} or (hint is str and not isinstance(parsed["value"], str)):
        return text
    return parsed["value"]


def _build(table: str, settings: Mapping[str, Setting], problems: list[str]) -> Any:
    """The options of one table; what is wrong with them goes to `problems`."""
    home = table.partition(".")[0]
    values = {}
    for key, (value, source) in settings.items():
        if key not in FIELDS[home]:
            problems.append(f"{source}: [{table}] has no key {key!r}; {_nearest_key(home, key)}")
            continue
        try:
            values[key] = _validate(FIELDS[home][key], TYPES[home][key], value)
        except _Invalid as invalid:
            shown = f"{key} = {_show(invalid.value)}" if FIELDS[home][key].repr else key
            problems.append(f"{source}: [{table}] {shown} {invalid}")
    return TABLES[home](**values)


def _validate(option: Field[Any], hint: Any, value: Any) -> Any:
    kind = _KINDS[hint]
    if not kind.accepts(value):
        wanted = kind.name + _bounds(option) + _example(option)
        raise _Invalid(value, f"is {_kind_of(value)}; it must be {wanted}")
    value = kind.convert(value)
    bounds: Mapping[str, Any] = option.metadata
    if "choices" in bounds and value not in bounds["choices"]:
        nearest_choice = _suggest(value, [repr(choice) for choice in bounds["choices"]])
        raise _Invalid(value, f"is not one of its values; {nearest_choice}")
    for bound, nearest in (("at_least", max), ("at_most", min)):
        limit = bounds.get(bound)
        if limit is not None and nearest(value, limit) != value:
            problem = f"is out of range; it must be{_bounds(option)}, the nearest is {limit}"
            raise _Invalid(value, problem)
    return value


def _text(value: Any) -> str:
    if any(not character.isprintable() for character in value):
        raise _Invalid(value, "has a character that cannot be printed; write it on one line")
    return str(value)


def _finite(value: Any) -> float:
    try:
        number = float(value)
    except OverflowError:  # an integer beyond all floats
        number = math.inf
    if not math.isfinite(number):
        raise _Invalid(value, "must be a finite number")
    return number


def _whole(value: Any) -> Any:
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_text_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _is_text_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


class _Kind(NamedTuple):
    """A type that an option may have: its name in errors, what is accepted, and the value made of it."""

    name: str
    accepts: Callable[[Any], bool]
    convert: Callable[[Any], Any]


_KINDS: Mapping[Any, _Kind] = {
    bool: _Kind("true or false", lambda value: isinstance(value, bool), _whole),
    int: _Kind("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool), _whole),
    float: _Kind("a number", _is_number, _finite),
    str: _Kind("a string", lambda value: isinstance(value, str), _text),
    dict[str, str]: _Kind("a table of strings", _is_text_table, _whole),
    list[str]: _Kind("an array of strings", _is_text_list, _whole),
}


def _bounds(option: Field[Any]) -> str:
    """The range or the choices of an option, as they continue a sentence."""
    bounds = option.metadata
    if "choices" in bounds:
        return " out of " + ", ".join(bounds["choices"])
    low, high = bounds.get("at_least"), bounds.get("at_most")
    if low is not None and high is not None:
        return f" from {low} to {high}"
    return f" of at least {low}" if low is not None else f" of at most {high}" if high is not None else ""


def _example(option: Field[Any]) -> str:
    return f", such as {_show(option.default)}" if option.default not in ("", MISSING) else ""


def _kind_of(value: Any) -> str:
    names = {str: "a string", bool: "a boolean", int: "an integer", float: "a number", list: "an array"}
    return names.get(type(value), "a table" if isinstance(value, dict) else "a date or time")


def _unknown_table(table: str, content: Any) -> str:
    if isinstance(content, dict):
        return f"there is no table [{_clip(table)}]; {_suggest(table, [f'[{known}]' for known in TABLES])}"
    home = _home_of(table)
    known = f"it belongs to {home}" if home else f"the tables are {', '.join(TABLES)}"
    return f"{table!r} stands outside of a table; {known}"


def _bad_name(table: str, name: str) -> str:
    return f"[{table}.{_clip(repr(name))}] must be named with 1 to 64 letters, digits, '-' and '_'"


def _nearest_key(table: str, key: str) -> str:
    home = _home_of(key)
    return f"it belongs to {home}" if home else _suggest(key, [repr(known) for known in FIELDS[table]])


def _home_of(key: str) -> str:
    """The table of an option of that name, "" if there is none."""
    homes = [home for home in FIELDS if key in FIELDS[home]]
    return "" if not homes else f"[{homes[0]}.NAME]" if homes[0] in NAMED else f"[{homes[0]}]"


def _suggest(word: str, known: Sequence[str]) -> str:
    """The nearest valid word, or all of them where none is near."""
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}"


def _show(value: Any) -> str:
    """A value as TOML writes it, on one short line."""
    if isinstance(value, bool):
        return str(value).lower()
    return _clip(repr(value))


def _clip(text: str) -> str:
    line = "".join(character if character.isprintable() else "?" for character in text)
    return line if len(line) <= 60 else line[:57] + "..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _host_is_named(config: Config, settings: _Settings) -> Iterator[str]:
    if not re.fullmatch(r"\S+", config.server.host):
        yield _told(settings, "server", "host", "must name an address to listen on, such as '127.0.0.1'")


def _device_is_known(config: Config, settings: _Settings) -> Iterator[str]:
    if not DEVICE_NAMES.fullmatch(config.device.name):
        yield _told(settings, "device", "name", "must be one of auto, cpu, cuda, cuda:0, cuda:1, ...")


def _revision_has_a_model(config: Config, settings: _Settings) -> Iterator[str]:
    if config.model.revision and not config.model.path:
        yield _told(
            settings, "model", "revision", "has no effect on the built-in model; set [model] path as well"
        )


def _digests_are_whole(config: Config, settings: _Settings) -> Iterator[str]:
    for name, digest in config.model.sha256.items():
        if not re.fullmatch("[0-9a-f]{64}", digest):
            found = f"{len(digest)} characters" if len(digest) != 64 else "other characters"
            yield _told(
                settings, "model", "sha256", f"of {name!r} must be 64 lower-case hex digits, not {found}"
            )


def _keys_have_their_own_secrets(config: Config, settings: _Settings) -> Iterator[str]:
    owners: dict[str, str] = {}
    for name, options in config.keys.items():
        secret, table = options.secret, f"keys.{name}"
        owner = owners.setdefault(secret, table)
        if not secret:
            yield _told(settings, table, "secret", "must be set: it is what clients send")
        elif len(secret) < LEAST_SECRET or not re.fullmatch("[!-~]+", secret):
            needed = f"must have {LEAST_SECRET} characters at least, of printable ASCII without spaces"
            yield _told(settings, table, "secret", needed)
        elif owner != table:
            yield _told(settings, table, "secret", f"is that of [{owner}] as well; each key needs its own")


def _scheduling_has_effect(config: Config, settings: _Settings) -> Iterator[str]:
    options = config.scheduler
    policy, idle = POLICIES[options.policy], []
    if not policy.shares:
        idle = [("scheduler", "ageing_seconds")]
        if policy.level(options) == 0.0:  # nor has priority
            idle += [(f"keys.{name}", "priority") for name in config.keys]
    for table, key in idle:
        if key in settings[table]:
            problem = f"has no effect under [scheduler] policy = '{options.policy}'; leave one of them out"
            yield _told(settings, table, key, problem)
    if options.target_step_ms == 0.0 and "lone_overhead" in settings["scheduler"]:
        problem = "has no effect with target_step_ms = 0; leave one of them out"
        yield _told(settings, "scheduler", "lone_overhead", problem)


def _speculation_has_effect(config: Config, settings: _Settings) -> Iterator[str]:
    drafter = config.speculation.drafter
    idle = {
        "off": ("draft", "most_drafts", "control", "other_answers"),
        "ngram": ("draft",),
        "model": ("other_answers",),
    }.get(drafter, ())
    for key in idle:
        if key in settings["speculation"]:
            problem = f"has no effect with drafter = '{drafter}'; leave one of them out"
            yield _told(settings, "speculation", key, problem)


def _storing_has_effect(config: Config, settings: _Settings) -> Iterator[str]:
    if not config.responses.store:
        for key in ("store_path", "max_stored_mib", "max_age_hours"):
            if key in settings["responses"]:
                problem = "has no effect with store = false; leave one of them out"
                yield _told(settings, "responses", key, problem)


def _told(settings: _Settings, table: str, key: str, problem: str) -> str:
    setting = settings[table].get(key) or next(iter(settings[table].values()), None)
    return f"{setting.source if setting else 'defaults'}: [{table}] {key} {problem}"


# What a value's type and range cannot tell. Run only over a configuration that is sound otherwise.
CHECKS: tuple[Callable[[Config, _Settings], Iterator[str]], ...] = (
    _host_is_named,
    _device_is_known,
    _revision_has_a_model,
    _digests_are_whole,
    _keys_have_their_own_secrets,
    _speculation_has_effect,
    _scheduling_has_effect,
    _storing_has_effect,
)
