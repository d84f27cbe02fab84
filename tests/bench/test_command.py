"""The bench as it is run: a process, its streams, its exit status, its signals."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.serve.recording import load

ROOT = Path(__file__).parents[2]
STREAMS = ("--workload", "streams", "--streams", "1,3", "--prompt", "40", "--output", "6", "--repeats", "2")
Serve = Callable[..., Any]


def heed_ctrl_c() -> None:
    """A shell lets what runs in its background, and all that starts, ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def started(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", *arguments),
        preexec_fn=heed_ctrl_c,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(*arguments: str) -> tuple[int | None, str, str]:
    """Exit status, standard output, standard error."""
    process = await started(*arguments)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_a_run_prints_its_report_and_progress_and_leaves_its_files(
    serve: Serve, tmp_path: Path
) -> None:
    endpoint = await serve()
    kept, page, again = tmp_path / "run.json", tmp_path / "run.html", tmp_path / "again.html"
    outputs = ("--json", str(kept), "--html", str(page))
    status, out, err = await run("serve", "--url", endpoint.url, *STREAMS, *outputs)
    assert (status, "Traceback" in err) == (0, False)
    assert "TTFT p50" in out
    assert err.count("repeat ") == 2
    assert len(load(kept).repeats) == 2

    status, told_again, err = await run("serve", "--from", str(kept), "--html", str(again))
    assert (status, told_again, err) == (0, out, "")
    assert again.read_bytes() == page.read_bytes()


async def test_an_endpoint_that_dies_ends_the_run_with_a_report_and_status_1(
    serve: Serve, tmp_path: Path
) -> None:
    endpoint = await serve(dies_at=11)
    kept = tmp_path / "run.json"
    status, out, err = await run("serve", "--url", endpoint.url, *STREAMS, "--json", str(kept))
    assert (status, "Traceback" in err) == (1, False)
    assert "TTFT p50" in out
    assert "does not answer any more" in out
    assert load(kept).ended_early is not None


async def test_ctrl_c_ends_the_run_with_a_report_and_status_130(serve: Serve) -> None:
    asked = asyncio.Event()
    endpoint = await serve(
        on_request=lambda number: asked.set() if number == 11 else None, held=range(11, 99)
    )
    process = await started("serve", "--url", endpoint.url, *STREAMS)
    await asked.wait()
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, "Traceback" in err.decode()) == (130, False)
    assert "TTFT p50" in out.decode()
    assert "The run ended early: Ctrl-C." in out.decode()


async def test_ctrl_c_before_anything_is_measured_ends_in_a_line(serve: Serve) -> None:
    asked = asyncio.Event()
    endpoint = await serve(on_request=lambda _: asked.set(), held=range(99))
    process = await started("serve", "--url", endpoint.url, *STREAMS)
    await asked.wait()
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"")
    assert err.decode().splitlines()[-1] == "ended before anything was measured"
    assert "Traceback" not in err.decode()


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("serve",), 2, "error: give --url"),
        (("serve", "--from", "nowhere.json"), 1, "error: nowhere.json: No such file or directory"),
        (("serve", "--url", "127.0.0.1:1", "--workload", "chat"), 1, "cannot connect: Connection refused"),
        (("serv",), 1, "error: no bench 'serv'; did you mean 'serve'?"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_one_line(arguments: tuple[str, ...], status: int, told: str) -> None:
    ended, out, err = await run(*arguments)
    assert (ended, out) == (status, "")
    assert len(err.splitlines()) == 1
    assert told in err


async def test_the_benches_are_listed_with_what_they_show() -> None:
    status, out, _ = await run()
    assert status == 0
    assert "  serve        Loads any OpenAI-compatible endpoint" in out
