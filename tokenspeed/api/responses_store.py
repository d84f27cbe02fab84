"""Responses that clients come back to, as files: one each, by account, bounded in size and in age.

What is kept outlives the process. It is not synced to the disk: after a power cut a response may be lost or
torn, and what cannot be read is as good as not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from tokenspeed.api.responses_items import RESPONSE_ID

log = logging.getLogger(__name__)

_VERSION = 1
_SUFFIX, _PARTIAL = ".json", ".partial"
_LEFT_BEHIND = 3600.0  # seconds after which nobody still writes a partial file


class Record(NamedTuple):
    """A response as it was answered, and the items of its own request. What the conversation had before is
    kept with the response that `previous_response_id` names."""

    response: Mapping[str, Any]
    input: list[dict[str, Any]]

    @property
    def previous(self) -> str | None:
        found: str | None = self.response.get("previous_response_id")
        return found

    @property
    def items(self) -> list[dict[str, Any]]:
        """What the request brought and what was answered."""
        return [*self.input, *self.response["output"]]


class _Held(NamedTuple):
    size: int  # bytes
    used: float  # Unix time


class ResponseStore:
    """Threads may share it. Files of other processes in the same folder are found, but not counted."""

    def __init__(
        self, folder: Path, *, most_bytes: int, max_age: float, now: Callable[[], float] = time.time
    ) -> None:
        """`max_age` is in seconds since the last use, as `now` counts them."""
        self._folder = folder
        self._most_bytes = most_bytes
        self._max_age = max_age
        self._now = now
        self._lock = threading.Lock()  # over what follows
        self._held: OrderedDict[Path, _Held] = OrderedDict()  # the least recently used first
        self._total = 0
        for path, held in sorted(self._scan(), key=lambda found: found[1].used):
            self._count(path, held)

    def save(self, account: str, record: Record) -> None:
        """Keep it; a disk that does not take it is told in the log, never to the client it would not help."""
        data = orjson.dumps({"version": _VERSION, "response": record.response, "input": record.input})
        if len(data) > self._most_bytes:
            return
        path = self._path(account, record.response["id"])
        try:
            _write(path, data)
            os.utime(path, (self._now(), self._now()))
        except OSError as error:
            log.warning("a response cannot be stored: %s", error)
            return
        with self._lock:
            self._count(path, _Held(len(data), self._now()))
            self._evict()

    def load(self, account: str, response_id: str) -> Record | None:
        """The response with that id, which is thereby used; None where this account has none."""
        if not RESPONSE_ID.fullmatch(response_id):
            return None
        path, now = self._path(account, response_id), self._now()
        try:
            if now - path.stat().st_mtime > self._max_age:
                self._drop(path)
                return None
            data = path.read_bytes()
            os.utime(path, (now, now))
        except OSError:
            return None
        record = _parse(data, response_id)
        if record is None:
            log.warning("%s is not what was stored; it is removed", path)
            self._drop(path)
            return None
        with self._lock:
            self._count(path, _Held(len(data), now))
        return record

    def delete(self, account: str, response_id: str) -> bool:
        """Whether there was one."""
        return bool(RESPONSE_ID.fullmatch(response_id)) and self._drop(self._path(account, response_id))

    def _path(self, account: str, response_id: str) -> Path:
        """Names of accounts differ in case, and one is empty, where file systems want neither."""
        owner = hashlib.sha256(account.encode()).hexdigest()[:32]
        return self._folder / owner / f"{response_id}{_SUFFIX}"

    def _scan(self) -> Iterator[tuple[Path, _Held]]:
        """What is there from before; what was left half written is removed."""
        for path in self._folder.glob("*/resp_*"):
            with contextlib.suppress(OSError):
                stat = path.stat()
                if path.suffix == _SUFFIX:
                    yield path, _Held(stat.st_size, stat.st_mtime)
                elif path.suffix == _PARTIAL and self._now() - stat.st_mtime > _LEFT_BEHIND:
                    path.unlink()

    def _count(self, path: Path, held: _Held) -> None:
        before = self._held.pop(path, None)
        self._total += held.size - (before.size if before else 0)
        self._held[path] = held

    def _evict(self) -> None:
        """Let go of what is too old, then of the least recently used until the rest fits."""
        oldest = self._now() - self._max_age
        while self._held:
            path, held = next(iter(self._held.items()))
            if self._total <= self._most_bytes and held.used >= oldest:
                return
            self._forget(path)
            with contextlib.suppress(OSError):
                path.unlink()

    def _drop(self, path: Path) -> bool:
        with self._lock:
            self._forget(path)
        try:
            path.unlink()
        except OSError:
            return False
        return True

    def _forget(self, path: Path) -> None:
        held = self._held.pop(path, None)
        self._total -= held.size if held else 0


def _write(path: Path, data: bytes) -> None:
    """All of it or nothing, for the eyes of the server's user alone."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f"{path.stem}.{secrets.token_hex(4)}{_PARTIAL}")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _parse(data: bytes, response_id: str) -> Record | None:
    """What was stored, if it is all that and nothing else."""
    try:
        stored = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    match stored:
        case {"version": int(version), "response": dict(response), "input": list(given)}:
            before, output = response.get("previous_response_id"), response.get("output")
            known = version == _VERSION and response.get("id") == response_id
            linked = before is None or isinstance(before, str)
            if known and linked and _are_items(given) and _are_items(output):
                return Record(response, given)
    return None


def _are_items(found: Any) -> bool:
    return isinstance(found, list) and all(
        isinstance(item, dict) and isinstance(item.get("id"), str) for item in found
    )
