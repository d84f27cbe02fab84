"""What the tests of Ollama's API ask, and how they read the answers."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from tokenspeed.generation.outputs import Usage

SPEECH = "Größe, naïve, 你好 🙂. The quick brown fox."
HI = [{"role": "user", "content": "hi"}]
CHAT = {"model": "local", "messages": HI}
THINKS = """{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}
{%- if message.reasoning_content %}[{{ message.reasoning_content }}]{% endif %}
{%- for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor -%}
{{ '<|im_end|>' }}{% endfor %}{% for tool in tools or [] %}{{ tool | tojson }}{% endfor -%}
<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}"""
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
USAGE = Usage(7, 5, 0, 0, (5,), 0.25, 1.5)
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


def lines_of(body: bytes) -> list[dict[str, Any]]:
    """Every line of a stream, each of which must be an object."""
    assert body.endswith(b"\n")
    lines = [json.loads(line) for line in body.decode().split("\n")[:-1]]
    assert all(isinstance(line, dict) for line in lines)
    return lines


async def streamed(server, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await server.post(path, body)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/x-ndjson"
    return lines_of(answer.body)


def check_end(line: dict[str, Any], reason: str = "stop") -> None:
    """The last line, or a whole answer."""
    assert (line["done"], line["done_reason"]) == (True, reason)
    assert all(type(line[name]) is int and line[name] >= 0 for name in DURATIONS)
    parts = line["prompt_eval_duration"] + line["eval_duration"]
    assert abs(line["total_duration"] - parts) <= 1
    assert datetime.fromisoformat(line["created_at"]).tzinfo is not None
