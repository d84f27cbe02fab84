"""What is kept of responses is bounded, survives, is nobody else's, and is never half of something."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tokenspeed.api.options import ResponsesOptions
from tokenspeed.api.responses_items import new_response_id
from tokenspeed.api.responses_store import Record, ResponseStore
from tokenspeed.build import store_for
from tokenspeed.errors import ConfigError


class Clock:
    """A wall clock that a test moves."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0

    def __call__(self) -> float:
        self.time += 1.0  # no two uses are at the same time
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(tmp_path: Path, clock: Clock) -> Callable[..., ResponseStore]:
    """Opens the same folder, each time anew."""

    def opening(most_bytes: int = 2**20, max_age: float = 1000.0) -> ResponseStore:
        return ResponseStore(tmp_path / "store", most_bytes=most_bytes, max_age=max_age, now=clock)

    return opening


def record(size: int = 0, previous: str | None = None) -> Record:
    response = {"id": new_response_id(), "previous_response_id": previous, "output": [{"id": "o"}]}
    return Record(response, [{"id": "i", "content": "x" * size}])


def names(folder: Path) -> set[str]:
    return {path.stem for path in folder.rglob("*.json")}


def test_what_was_saved_is_found_by_every_store_that_opens_the_folder(opened) -> None:
    kept = record(previous="resp_" + "1" * 24)
    opened().save("me", kept)
    found = opened().load("me", kept.response["id"])
    assert found == kept
    assert found.previous == "resp_" + "1" * 24
    assert found.items == [*kept.input, {"id": "o"}]


@pytest.mark.parametrize("other", ["", "ME", "me2", "../me"])
def test_each_account_has_its_own(opened, other: str) -> None:
    store, kept = opened(), record()
    store.save("me", kept)
    assert store.load(other, kept.response["id"]) is None
    assert not store.delete(other, kept.response["id"])
    assert store.load("me", kept.response["id"]) == kept


def test_the_least_recently_used_go_when_there_is_no_more_room(opened, tmp_path: Path) -> None:
    store, kept = opened(most_bytes=3500), [record(1000) for _ in range(4)]
    for each in kept[:3]:
        store.save("", each)
    store.load("", kept[0].response["id"])
    store.save("", kept[3])
    assert names(tmp_path) == {each.response["id"] for each in (kept[0], kept[2], kept[3])}


def test_what_was_there_before_counts_and_is_as_old_as_its_last_use(opened, tmp_path: Path) -> None:
    store, kept = opened(), [record(1000) for _ in range(3)]
    for each in kept:
        store.save("", each)
    store.load("", kept[0].response["id"])
    again, new = opened(most_bytes=3500), record(1000)
    again.save("", new)
    assert names(tmp_path) == {each.response["id"] for each in (kept[0], kept[2], new)}


def test_what_was_deleted_makes_room(opened, tmp_path: Path) -> None:
    store, kept = opened(most_bytes=3500), [record(1000) for _ in range(4)]
    for each in kept[:3]:
        store.save("", each)
    assert store.delete("", kept[2].response["id"])
    assert not store.delete("", kept[2].response["id"])
    store.save("", kept[3])
    assert names(tmp_path) == {each.response["id"] for each in (kept[0], kept[1], kept[3])}


def test_what_fits_nowhere_drives_nothing_out(opened) -> None:
    store, small, large = opened(most_bytes=3500), record(1000), record(5000)
    store.save("", small)
    store.save("", large)
    assert store.load("", large.response["id"]) is None
    assert store.load("", small.response["id"]) == small


def test_what_is_too_old_is_gone_and_its_file_goes_as_well(opened, tmp_path: Path, clock: Clock) -> None:
    store, old, used, new = opened(), record(), record(), record()
    store.save("", old)
    store.save("", used)
    clock.time += 900.0
    assert store.load("", used.response["id"]) == used
    clock.time += 900.0
    assert store.load("", old.response["id"]) is None
    store.save("", new)
    assert names(tmp_path) == {used.response["id"], new.response["id"]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'{"version": 1}',
        b'{"version": 2, "response": {"id": "ID", "output": []}, "input": []}',
        b'{"version": 1, "response": {"id": "another", "output": []}, "input": []}',
        b'{"version": 1, "response": {"id": "ID", "output": 7}, "input": []}',
        b'{"version": 1, "response": {"id": "ID", "output": [7]}, "input": []}',
        b'{"version": 1, "response": {"id": "ID", "output": []}, "input": [{}]}',
        b'{"version": 1, "response": {"id": "ID", "output": [], "previous_response_id": 7}, "input": []}',
    ],
)
def test_a_file_that_is_not_what_was_stored_is_not_found(opened, tmp_path: Path, content: bytes) -> None:
    store, kept = opened(), record()
    store.save("", kept)
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(content.replace(b"ID", kept.response["id"].encode()))
    os.utime(path, (1_700_000_000.0, 1_700_000_000.0))
    assert store.load("", kept.response["id"]) is None
    assert not path.exists()


def test_what_was_left_half_written_is_removed_in_time(opened, tmp_path: Path, clock: Clock) -> None:
    opened().save("", record())
    (path,) = tmp_path.rglob("*.json")
    partial = path.with_name(path.stem + ".0.partial")
    partial.write_bytes(b"{")
    os.utime(partial, (clock.time, clock.time))
    opened()
    assert partial.exists()  # somebody may still be at it
    clock.time += 4000.0
    opened()
    assert not partial.exists()


@pytest.mark.parametrize("name", ["", "resp_1", "../../etc/passwd", "resp_" + "0" * 23 + "/", "é" * 500])
def test_what_is_no_id_never_becomes_a_path(opened, name: str) -> None:
    store = opened()
    assert store.load("", name) is None
    assert not store.delete("", name)


def test_nobody_else_on_the_machine_can_read_it(opened, tmp_path: Path) -> None:
    opened().save("", record())
    (path,) = tmp_path.rglob("*.json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_disk_that_takes_nothing_is_told_in_the_log_alone(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("in the way")
    store, kept = ResponseStore(tmp_path / "file", most_bytes=2**20, max_age=9.0), record()
    store.save("", kept)
    assert store.load("", kept.response["id"]) is None
    assert "cannot be stored" in caplog.text


def test_threads_share_it(opened, tmp_path: Path) -> None:
    store, kept = opened(most_bytes=20_000), [record(1000) for _ in range(64)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda each: store.save("", each), kept))
        found = list(pool.map(lambda each: store.load("", each.response["id"]), kept))
    assert [each for each in found if each] == [
        each for each in kept if each.response["id"] in names(tmp_path)
    ]
    total = sum(path.stat().st_size for path in tmp_path.rglob("*.json"))
    assert 10_000 < total <= 20_000


def test_what_is_stored_is_json_that_others_can_read(opened, tmp_path: Path) -> None:
    kept = record()
    opened().save("", kept)
    (path,) = tmp_path.rglob("*.json")
    assert json.loads(path.read_text())["response"] == kept.response


def test_the_configuration_says_where_and_whether(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert store_for(ResponsesOptions(store=False)) is None
    own = store_for(ResponsesOptions())
    assert own is not None
    assert not list(tmp_path.iterdir())  # nothing is made before it is needed
    own.save("", record())
    assert names(tmp_path / "state" / "tokenspeed" / "responses")
    named = store_for(ResponsesOptions(store_path=str(tmp_path / "named")))
    assert named is not None
    assert (tmp_path / "named").is_dir()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="store_path"):
        store_for(ResponsesOptions(store_path=str(tmp_path / "file")))
