"""What the tests of llama.cpp's API ask, and how they read the answers."""

from __future__ import annotations

import json
from typing import Any

TEXT = {"prompt": "The quick", "n_predict": 30}
INFILL = {"input_prefix": "def f(\n", "input_suffix": "\nreturn x", "prompt": "  a", "n_predict": 30}


async def posted(server, path: str, body: dict[str, Any]) -> Any:
    answer = await server.post(path, body)
    assert answer.status == 200, answer.body
    return answer.json()


def events_of(body: bytes) -> list[dict[str, Any]]:
    """What every event of a stream says; each must be one line and an object."""
    events = body.decode().split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: {") and "\n" not in event for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]
