"""The lines of a recording, each checked against its form and against those before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from tokenspeed.core.plan import Capacity
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.core.request import FinishReason
from tokenspeed.engine.recorder import FORMAT, REFUSED, Came, Ended, Header, Line, Ran
from tokenspeed.errors import TokenSpeedError

FORMS: Mapping[str, type[Line]] = {"came": Came, "ran": Ran, "ended": Ended}
MOST_CHOICES = 4096  # of one request
FOREVER = 1e9  # seconds; no recording is longer


class RecordingError(TokenSpeedError):
    """A recording cannot be read; the message names the file, the line and the field."""


class Lines:
    """What was read so far; each method raises `RecordingError` where a line is not what it must be."""

    def __init__(self, path: Path) -> None:
        self.came: list[Came] = []
        self.ran: list[Ran] = []
        self.ended: dict[tuple[int, int], Ended] = {}  # by request and choice
        self._path = path
        self._where = str(path)

    def read_header(self, text: bytes) -> Header:
        """The first line."""
        self._where = f"{self._path}, line 1"
        raw = self._decoded(text)
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            self._refuse("format", f"this is not a recording of the form {FORMAT!r}")
        try:
            header = msgspec.convert(raw, Header)
            _complete(header.capacity, Capacity, "capacity")
            _complete(header.scheduler, SchedulerOptions, "scheduler")
        except msgspec.ValidationError as error:
            what, _, place = str(error).partition(" - at ")
            self._refuse(place.strip("`$.") or "header", what)
        for name, count in header.capacity.items():
            self._bounded(f"capacity.{name}", count, 1)
        return header

    def read(self, text: bytes, number: int) -> None:
        """Line `number`, which is not the first."""
        self._where = f"{self._path}, line {number}"
        line = self._line(self._decoded(text))
        if isinstance(line, Came):
            self._check_came(line)
            self.came.append(line)
        elif isinstance(line, Ran):
            self._check_ran(line)
            self.ran.append(line)
        else:
            self._check_ended(line)
            self.ended[line.request, line.choice] = line

    # -- the form of a line -------------------------------------------------------------------------

    def _decoded(self, text: bytes) -> Any:
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RecordingError(f"{self._where}: not JSON: {error}") from None

    def _line(self, raw: Any) -> Line:
        name = raw[0] if isinstance(raw, list) and raw else None
        form = FORMS.get(name) if isinstance(name, str) else None
        if form is None:
            raise RecordingError(
                f"{self._where}: must be an array that begins with one of {', '.join(FORMS)}"
            )
        members = form.__struct_fields__
        if len(raw) - 1 != len(members):
            missing = members[len(raw) - 1 :]
            told = f"{missing[0]}: it is missing" if missing else f"{name}: it has more than {members[-1]!r}"
            raise RecordingError(f"{self._where}: {told}")
        try:
            return msgspec.convert(raw, form)
        except msgspec.ValidationError as error:
            what, _, place = str(error).partition(" - at `$[")
            index, _, within = place.rstrip("`").partition("]")
            self._refuse(f"{members[int(index) - 1]}{within}", what)

    # -- what it may say ----------------------------------------------------------------------------

    def _check_came(self, line: Came) -> None:
        self._bounded("at", line.at, 0, FOREVER)
        self._bounded("prompt", line.prompt, 1)
        self._bounded("max_tokens", line.max_tokens, 0)
        self._bounded("n", line.n, 1, MOST_CHOICES)
        self._bounded("account", line.account, 0)
        self._bounded("predicted", line.predicted, 0)
        if line.deadline is not None:
            self._bounded("deadline", line.deadline, -FOREVER, FOREVER)
        if line.shared:
            self._bounded("like", line.like, 0, len(self.came) - 1)
            model = self.came[line.like]
            self._bounded("choice", line.choice, 0, model.n - 1)
            self._bounded("shared", line.shared, 1, min(line.prompt, model.prompt + model.max_tokens))

    def _check_ran(self, line: Ran) -> None:
        self._bounded("at", line.at, 0, FOREVER)
        for name in ("seconds", "predicted", "decodes", "read"):
            self._bounded(name, getattr(line, name), 0)
        for index, (request, choice, start, count) in enumerate(line.chunks):
            self._bounded(f"chunks[{index}][0]", request, -1, len(self.came) - 1)
            self._bounded(f"chunks[{index}][1]", choice, 0)
            self._bounded(f"chunks[{index}][2]", start, 0)
            self._bounded(f"chunks[{index}][3]", count, 1)

    def _check_ended(self, line: Ended) -> None:
        self._bounded("request", line.request, 0, len(self.came) - 1)
        came = self.came[line.request]
        self._bounded("choice", line.choice, 0, came.n - 1)
        if (line.request, line.choice) in self.ended:
            self._refuse("choice", f"{line.choice} of request {line.request} has ended in a line before")
        self._bounded("at", line.at, 0, FOREVER)
        if line.reason not in (*FinishReason, REFUSED):
            self._refuse("reason", f"{line.reason!r} is none of {', '.join((*FinishReason, REFUSED))}")
        least = 1 if line.reason == FinishReason.STOP else 0
        self._bounded("tokens", line.tokens, least, came.max_tokens)
        self._bounded("cached", line.cached, 0, came.prompt)
        if line.first is not None:
            self._bounded("first", line.first, 0)

    def _bounded(self, field: str, value: float, least: float, most: float = float("inf")) -> None:
        if not least <= value <= most:
            low = f"less than {least:g}" if value < least else f"more than {most:g}"
            self._refuse(field, f"{value:g} is {low}")

    def _refuse(self, field: str, what: str) -> NoReturn:
        raise RecordingError(f"{self._where}: {field}: {what[:1].lower()}{what[1:]}")


def _complete(given: Mapping[str, Any], kind: type[Any], name: str) -> None:
    """Every option must be there with its type: defaults may change from one version to the next."""
    known = [option.name for option in fields(kind)]
    for option in known:
        if option not in given:
            raise msgspec.ValidationError(f"It is missing - at `$.{name}.{option}`")
    for option in given:
        if option not in known:
            raise msgspec.ValidationError(f"It is not known - at `$.{name}.{option}`")
    try:
        msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        raise msgspec.ValidationError(f"{what} - at `$.{name}.{place.strip('`$.')}`") from None
