"""The page, opened in a real browser: what the plots hold, and that nothing goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from bench.serve.page import write_page
from bench.serve.plots import plots
from bench.serve.recording import Recording
from bench.serve.summary import Summary

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# What the browser holds and has drawn, once every plot is there.
LOOK = """
(async () => {
  const plots = () => Array.from(document.querySelectorAll(".plot"));
  const drawn = div => div._fullLayout && div.querySelector(".trace");
  while (document.readyState !== "complete" || !plots().every(drawn))
    await new Promise(requestAnimationFrame);
  return JSON.stringify(plots().map(div => ({
    id: div.id,
    x: div._fullLayout.xaxis.title.text,
    y: div._fullLayout.yaxis.title.text,
    marks: (div.layout.shapes || []).map(shape => shape.x0),
    traces: div.data.map(trace => ({name: trace.name, x: Array.from(trace.x), y: Array.from(trace.y)})),
    drawn: div.querySelectorAll(".trace").length})));
})()
"""


class Browser:
    """A page under the DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.complaints: list[Any] = []  # exceptions, errors on the console, and requests that failed
        self.requested: list[str] = []

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            said = await self._socket.receive_json()
            if said.get("id") == self._number:
                assert "error" not in said, said
                return dict(said["result"])
            self._hear(said)

    def _hear(self, said: dict[str, Any]) -> None:
        method, what = said["method"], said["params"]
        if method in ("Runtime.exceptionThrown", "Network.loadingFailed"):
            self.complaints.append(what)
        elif method == "Log.entryAdded" and what["entry"]["level"] == "error":
            self.complaints.append(what["entry"])
        elif method == "Network.requestWillBeSent":
            self.requested.append(what["request"]["url"])

    async def open(self, path: Path) -> None:
        for domain in ("Runtime", "Log", "Network", "Page"):
            await self.ask(f"{domain}.enable")
        await self.ask("Page.navigate", url=path.as_uri())

    async def evaluate(self, script: str) -> Any:
        done = await self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"]["value"]


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            *(CHROMIUM, "--headless", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"),
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            *(f"--user-data-dir={profile}", "about:blank"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(120), aiohttp.ClientSession() as session:
                url = await _page_of(process, session)
                async with session.ws_connect(url, max_msg_size=0) as socket:
                    yield Browser(socket)
        finally:
            process.kill()
            await process.communicate()


async def _page_of(process: asyncio.subprocess.Process, session: aiohttp.ClientSession) -> str:
    """Where the browser says that its page can be talked to."""
    assert process.stderr is not None
    async for line in process.stderr:
        if line.startswith(b"DevTools listening on ws://"):
            host = line.decode().split("/")[2]
            async with session.get(f"http://{host}/json/list") as answer:
                pages = await answer.json()
            return next(str(page["webSocketDebuggerUrl"]) for page in pages if page["type"] == "page")
    raise AssertionError("the browser ended at start")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
async def test_the_page_draws_what_was_measured_and_needs_nothing_else(
    recording: Recording, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    write_page(Summary(recording), path)
    async with browser() as page:
        await page.open(path)
        drawn = {plot["id"]: plot for plot in json.loads(await page.evaluate(LOOK))}
        table = await page.evaluate("document.getElementById('figures').innerText")
        title = await page.evaluate("document.title")
        complaints, requested = page.complaints, page.requested
    assert complaints == []
    assert requested == [path.as_uri()]
    assert title == "mixed: quick and slow <&>"
    assert "better" in table
    assert "no difference" in table
    assert set(drawn) == {"ttft", "gaps", "ttft-over-time"}
    assert all(plot["drawn"] == len(plot["traces"]) == 4 for plot in drawn.values())

    ttft = {trace["name"]: trace for trace in drawn["ttft"]["traces"]}
    assert set(ttft) == {"quick: short", "quick: long", "slow <&>: short", "slow <&>: long"}
    assert ttft["quick: short"]["y"][-1] == 1
    assert ttft["quick: short"]["x"][-1] == pytest.approx(0.019 * 1.02)
    assert ttft["slow <&>: short"]["x"][0] == pytest.approx(0.1)

    gaps = drawn["gaps"]
    assert gaps["y"] == "gap, ms"
    assert gaps["marks"] == [1.0, 3.0]  # when the long prompts arrive
    assert {round(gap, 3) for trace in gaps["traces"] for gap in trace["y"]} == {20.0}


def test_a_page_of_many_requests_stays_small(recording: Recording) -> None:
    first = recording.repeats[0]
    first.outcomes = [
        msgspec.structs.replace(outcome, scheduled=outcome.scheduled * n / 200)
        for n in range(200)
        for outcome in first.outcomes
    ]
    drawn = plots(Summary(recording))
    assert all(len(trace["x"]) <= 401 for plot in drawn for trace in plot.data)
