"""A recording holds no text and replays to what was recorded; what is wrong is told by line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed.core.accounts import Account
from tokenspeed.core.costs import Costs
from tokenspeed.core.plan import Capacity, Draw
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.core.request import FinishReason, Request, Sampling
from tokenspeed.engine.recorder import Recorder, Sharing
from tokenspeed.errors import ConfigError
from tokenspeed.sim.backend import token
from tokenspeed.sim.device import Device
from tokenspeed.sim.lines import RecordingError
from tokenspeed.sim.recording import Recording, read_recording
from tokenspeed.sim.simulate import Job, Leave, Trace, Traffic, own_token, simulate

BLOCK = 4
DEVICE = Device(
    "small",
    Costs(base=0.01, row=1e-3, token=1e-3, attended=1e-6, read=1e-6),
    Capacity(blocks=300, block_size=BLOCK, max_context=1024),
)
OPTIONS = SchedulerOptions(max_running=6)
ACCOUNTS = {"alice": Account(share=2.0), "bob": Account(max_running=2, max_waiting=50)}
ENDS = {3: 2, 7: 5}  # seed of a choice -> answers that end by themselves after so many tokens
STOP = 9


def says(draw: Draw) -> int:
    return STOP if draw.position % 1000 == ENDS.get(draw.seed >> 8, -1) else own_token(draw)


@st.composite
def traffic(draw: st.DrawFn) -> Traffic:
    """Prompts that begin alike, next turns behind an answer, clients that leave, choices, deadlines."""
    jobs: list[Job] = []
    at = 0.0
    for number in range(draw(st.integers(1, 14))):
        at += draw(st.integers(0, 500)) / 1000 if jobs else 0.0
        own = tuple(token(number << 8, i) for i in range(draw(st.integers(1, 60))))
        begin: tuple[int, ...] = ()
        if jobs:
            earlier = draw(st.sampled_from(jobs)).request
            answer = (
                token(earlier.sampling.seed, len(earlier.prompt) + i) for i in range(earlier.max_tokens)
            )
            begin = (*earlier.prompt, *answer)[: draw(st.integers(0, 80))]
            if len(begin) > len(earlier.prompt):
                at += 30.0  # a next turn comes after the answer
        leave = draw(st.none() | st.builds(Leave, st.integers(1, 6), st.just(0.0)))
        request = Request(
            str(number),
            (*begin, *own),
            draw(st.integers(1, 12)),
            Sampling(seed=number << 8, presence_penalty=draw(st.sampled_from([0.0, 0.5]))),
            n=draw(st.integers(1, 2)),
            stop_ids=frozenset({STOP}),
            priority=draw(st.integers(-1, 1)),
            account=draw(st.sampled_from(["", "alice", "bob"])),
            deadline=draw(st.sampled_from([None, at + 50.0])),
            prompt_logprobs=draw(st.sampled_from([None, None, 0])),
        )
        jobs.append(Job(at, "any", request, {} if leave is None else {0: leave}))
    return Traffic(jobs, says, ACCOUNTS)


def record(made: Traffic, path: Path) -> Trace:
    recorder = Recorder(
        path, capacity=DEVICE.capacity, options=OPTIONS, accounts=ACCOUNTS, prefix_cache=made.prefix_cache
    )
    trace = simulate(made, DEVICE, OPTIONS, observers=[recorder])
    recorder.close()
    return trace


def felt(trace: Trace) -> list[tuple[Any, ...]]:
    """By choice: whether it was taken, how it ended, and what it found computed."""
    return [(o.request.id, o.choice, o.refused is None, o.reason, o.cached) for o in trace.outcomes]


def moments(trace: Trace) -> list[float]:
    """Of every choice: what was predicted for it, and when each of its tokens came."""
    return [moment for o in trace.outcomes if o.refused is None for moment in (o.predicted, *o.times)]


@given(made=traffic())
@settings(max_examples=40, deadline=None)
def test_a_recording_replays_to_what_was_recorded(
    made: Traffic, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("recorded") / "recording.jsonl"
    trace = record(made, path)
    found = read_recording(path)
    assert (found.capacity, found.options, found.truncated) == (DEVICE.capacity, OPTIONS, False)
    assert list(found.traffic.accounts.values()) == list(ACCOUNTS.values())
    replayed = simulate(found.traffic, DEVICE, found.options)
    assert felt(replayed) == felt(trace)
    assert moments(replayed) == pytest.approx(moments(trace), abs=1e-4)
    assert replayed.cached_tokens == trace.cached_tokens
    assert len(found.steps) == len(trace.steps)
    assert sorted(f.tokens for f in found.felt) == sorted(
        len(o.times) + (o.reason is FinishReason.STOP) for o in trace.outcomes if o.refused is None
    )


def test_who_found_no_room_is_recorded_and_may_find_some_in_another_server(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    jobs = [Job(0.0, "any", Request(str(i), (i, 1, 2), 4, Sampling(seed=i << 8))) for i in range(6)]
    tight = SchedulerOptions(max_running=1, max_waiting=1)
    recorder = Recorder(path, capacity=DEVICE.capacity, options=tight, accounts={}, prefix_cache=True)
    trace = simulate(Traffic(jobs), DEVICE, tight, observers=[recorder])
    recorder.close()
    assert [o.refused is None for o in trace.outcomes] == [True] * 2 + [False] * 4
    found = read_recording(path)
    assert felt(simulate(found.traffic, DEVICE, found.options)) == felt(trace)
    assert len(found.felt) == 2
    roomy = simulate(found.traffic, DEVICE, SchedulerOptions())
    assert all(o.reason is FinishReason.LENGTH for o in roomy.outcomes)


def test_prompts_share_what_they_shared_and_nothing_else(tmp_path: Path) -> None:
    stem = tuple(range(100, 111))
    prompts = [stem, (*stem[:8], 1, 2, 3, 4, 5), tuple(range(500, 520)), (*stem, 7)]
    jobs = [
        Job(float(i), "any", Request(str(i), prompt, 4, Sampling(seed=i << 8)))
        for i, prompt in enumerate(prompts)
    ]
    path = tmp_path / "recording.jsonl"
    record(Traffic(jobs), path)
    found = [job.request.prompt for job in read_recording(path).traffic.jobs]
    assert [len(prompt) for prompt in found] == [11, 13, 20, 12]
    assert found[1][:8] == found[0][:8] == found[3][:8]
    assert found[3][:8] == found[0][:8]
    assert not set(found[2]) & {token for prompt in (found[0], found[1], found[3]) for token in prompt}
    assert not set(found[1][8:]) & set(found[0])


def test_no_token_of_a_prompt_is_written(tmp_path: Path) -> None:
    secret = tuple(range(777_000, 777_040))
    path = tmp_path / "recording.jsonl"
    record(Traffic([Job(0.0, "any", Request("a secret id", secret, 2, account="alice"))]), path)
    text = path.read_text()
    assert "777" not in text
    assert "secret" not in text
    assert "alice" not in text


def test_what_is_shared_is_forgotten_oldest_first() -> None:
    sharing = Sharing(block_size=2, remembered=3)
    assert sharing.place((1, 2, 3, 4), 0) == (-1, 0, 0)
    assert sharing.place((1, 2, 9, 9), 1) == (0, 0, 2)
    assert sharing.place((5, 6), 2) == (-1, 0, 0)  # the fourth block: [3, 4] behind [1, 2] is forgotten
    assert sharing.place((1, 2, 3, 4), 3) == (0, 0, 2)


def test_the_device_is_learned_from_the_steps(tmp_path: Path) -> None:
    jobs = [
        Job(
            0.05 * i,
            "any",
            Request(
                str(i), tuple(token(i << 8, p) for p in range(5 + 37 * i % 300)), 10, Sampling(seed=i << 8)
            ),
        )
        for i in range(40)
    ]
    path = tmp_path / "recording.jsonl"
    record(Traffic(jobs), path)
    costs = read_recording(path).fitted()
    assert costs.prefill(0, 200) == pytest.approx(DEVICE.costs.prefill(0, 200), rel=0.1)
    assert costs.base + costs.decode(100) == pytest.approx(
        DEVICE.costs.base + DEVICE.costs.decode(100), rel=0.1
    )


# -- what is wrong with a recording -------------------------------------------------------------------


@pytest.fixture
def lines(tmp_path: Path) -> list[Any]:
    """The lines of a good recording: a header, then two requests of 40 tokens each."""
    jobs = [
        Job(0.0, "any", Request(str(i), tuple(range(i, 40 + i)), 3, Sampling(seed=i << 8))) for i in range(2)
    ]
    path = tmp_path / "good.jsonl"
    record(Traffic(jobs), path)
    return [json.loads(line) for line in path.read_text().splitlines()]


def reading(lines: list[Any], path: Path, end: str = "\n") -> Recording:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + end)
    return read_recording(path)


def last(lines: list[Any], name: str) -> int:
    """The index of the last line that begins with `name`; the header is no array."""
    return max(i for i, line in enumerate(lines[1:], 1) if line[0] == name)


WRONG = [
    ("came", 1, "x", "at: expected `float`, got `str`"),
    ("came", 1, -1, "at: -1 is less than 0"),
    ("came", 2, 0, "prompt: 0 is less than 1"),
    ("came", 4, 2.5, "n: expected `int`, got `float`"),
    ("came", 7, "soon", "deadline: expected `float | null`, got `str`"),
    ("came", 13, 8, "like: -1 is less than 0"),
    ("ran", 2, None, "seconds: expected `float`, got `null`"),
    ("ran", 6, [[0, 0, 1]], "chunks[0]: expected `array` of length 4"),
    ("ran", 6, [[0, 0, "a", 1]], "chunks[0][2]: expected `int`, got `str`"),
    ("ran", 6, [[99, 0, 0, 1]], "chunks[0][0]: 99 is more than 1"),
    ("ended", 1, 5, "request: 5 is more than 1"),
    ("ended", 4, "bored", "reason: 'bored' is none of"),
    ("ended", 5, 4, "tokens: 4 is more than 3"),
]


@pytest.mark.parametrize(("name", "index", "value", "told"), WRONG)
def test_a_wrong_field_is_told_with_its_line(
    lines: list[Any], tmp_path: Path, name: str, index: int, value: Any, told: str
) -> None:
    at = last(lines, name)
    lines[at][index] = value
    with pytest.raises(RecordingError) as raised:
        reading(lines, tmp_path / "bad.jsonl")
    assert f"bad.jsonl, line {at + 1}: {told}" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('["came", 1', "not JSON"),
        ("\x00", "not JSON"),
        ("{}", "must be an array that begins with one of came, ran, ended"),
        ("[]", "must be an array that begins with one of came, ran, ended"),
        ('[["came"]]', "must be an array that begins with one of came, ran, ended"),
        ('["ran", 0.5, 0.1]', "predicted: it is missing"),
        ('["ended", 0, 0, 1.0, "length", 3, 0, 0.1, 5]', "ended: it has more than 'first'"),
    ],
)
def test_a_line_of_another_form_is_told(lines: list[Any], tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(RecordingError) as raised:
        reading([*lines[:2], line, *lines[2:]], tmp_path / "bad.jsonl")
    assert "bad.jsonl, line 3: " in str(raised.value)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "tokenspeed-recording/9"}, "format: this is not a recording of the form"),
        ({"capacity": {"blocks": 0, "block_size": 4, "max_context": 9}}, "capacity.blocks: 0 is less than 1"),
        ({"capacity": {"blocks": 5}}, "capacity.block_size: it is missing"),
        ({"scheduler": {}}, "scheduler.policy: it is missing"),
        ({"accounts": [[1.0, 2]]}, "accounts[0]: expected `array` of length 3"),
        ({"more": 1}, "header: object contains unknown field `more`"),
    ],
)
def test_a_wrong_header_is_told(lines: list[Any], tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(RecordingError) as raised:
        reading([lines[0] | change, *lines[1:]], tmp_path / "bad.jsonl")
    assert "bad.jsonl, line 1: " in str(raised.value)
    assert told in str(raised.value)


@pytest.mark.parametrize("name", ["policy", "max_running", "target_step_ms"])
def test_a_scheduler_option_of_the_wrong_kind_is_told(lines: list[Any], tmp_path: Path, name: str) -> None:
    lines[0]["scheduler"][name] = [name]
    with pytest.raises(RecordingError, match=rf"line 1: scheduler\.{name}: expected"):
        reading(lines, tmp_path / "bad.jsonl")


def test_a_choice_ends_once(lines: list[Any], tmp_path: Path) -> None:
    end = lines[last(lines, "ended")]
    with pytest.raises(RecordingError, match="choice: 0 of request 1 has ended in a line before"):
        reading([*lines, end], tmp_path / "bad.jsonl")


def test_a_last_line_that_was_cut_off_is_left_out_and_said(lines: list[Any], tmp_path: Path) -> None:
    whole = reading(lines, tmp_path / "whole.jsonl")
    cut = reading([*lines[:-1], json.dumps(lines[-1])[:-4]], tmp_path / "cut.jsonl", end="")
    assert (whole.truncated, cut.truncated) == (False, True)
    assert len(cut.felt) == len(whole.felt) - 1


def test_who_had_not_ended_when_the_recording_did_leaves_then(lines: list[Any], tmp_path: Path) -> None:
    kept = [lines[0], *(line for line in lines[1:] if line[0] != "ended")]
    jobs = reading(kept, tmp_path / "cut.jsonl").traffic.jobs
    assert [dict(job.leaves) for job in jobs] == [{0: Leave(0, at=0.0)}] * 2


@pytest.mark.parametrize("content", ["", "\n", "{}\n", "[1]\n"])
def test_what_is_no_recording_is_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(content)
    with pytest.raises(RecordingError, match=r"other\.jsonl"):
        read_recording(path)


def test_a_recording_without_requests_is_told(lines: list[Any], tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no request was recorded"):
        reading(lines[:1], tmp_path / "idle.jsonl")


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "kept.jsonl").write_text("precious")
    with pytest.raises(ConfigError, match="the file exists; remove it or name another"):
        record(Traffic([]), tmp_path / "kept.jsonl")
    assert (tmp_path / "kept.jsonl").read_text() == "precious"


def test_a_file_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        record(Traffic([]), tmp_path / "nowhere" / "recording.jsonl")


def test_a_full_disk_ends_the_recording_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    link = tmp_path / "recording.jsonl"
    recorder = Recorder(link, capacity=DEVICE.capacity, options=OPTIONS, accounts={}, prefix_cache=True)
    recorder.close()
    recorder._file = full.open("wb")
    job = Job(0.0, "any", Request("0", (1, 2, 3), 5))
    (outcome,) = simulate(Traffic([job]), DEVICE, OPTIONS, observers=[recorder]).outcomes
    recorder.close()
    assert len(outcome.times) == 5
    assert [record.getMessage() for record in caplog.records] == [
        f"{link}: the recording ends here: No space left on device"
    ]
