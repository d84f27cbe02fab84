"""Finds out what an endpoint serves, which fields it takes, and how it counts tokens."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any
from urllib.parse import urlsplit

import msgspec

from bench.client import BenchError
from bench.serve.client import Client, Tally
from bench.serve.prompts import WORDS, fitted
from bench.serve.recording import Endpoint, Outcome
from bench.serve.workloads import Arrival

CHAT, COMPLETIONS = "/chat/completions", "/completions"
OWN_FIELDS = (
    "model",
    "messages",
    "prompt",
    "max_tokens",
    "max_completion_tokens",
    "stream",
    "stream_options",
)
PROBES = (WORDS[::2], WORDS[1::2], WORDS)  # prompts that tell tokens a word
REFUSED = ("status 400", "status 422")  # how servers answer a field that they do not take
ABSENT = ("status 404", "status 405", "status 501")


def base_url(url: str) -> str:
    """What `/chat/completions` is appended to: `/v1` is added to an address without a path."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BenchError(f"{url!r} is not an address; give one like http://127.0.0.1:8000")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


def check_body(extra: Mapping[str, Any], where: str) -> None:
    """Raises BenchError for a field that the bench itself fills."""
    for name in extra:
        if name in OWN_FIELDS:
            raise BenchError(f"{where}: {name!r} is set by the bench itself")


def request_body(
    endpoint: Endpoint, arrival: Arrival, words: str, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """A greedy, streamed request that ends at `max_tokens`, as far as the endpoint can be told so."""
    if endpoint.path == CHAT:
        limit = "max_completion_tokens" if "max_tokens" in endpoint.left_out else "max_tokens"
        said: dict[str, Any] = {"messages": arrival.messages or [{"role": "user", "content": words}]}
    else:
        limit, said = "max_tokens", {"prompt": words}
    body = {"model": endpoint.model, **said, limit: arrival.max_tokens, "temperature": 0, "stream": True}
    if "ignore_eos" not in endpoint.left_out:
        body["ignore_eos"] = True
    if "stream_options" not in endpoint.left_out:
        body["stream_options"] = {"include_usage": True}
    return body | dict(extra) | dict(arrival.body)


async def model_of(client: Client) -> str:
    """The first model that the endpoint lists."""
    status, raw = await client.get("/models")
    try:
        return str(raw["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise BenchError(
            f"{client.url}/models lists no model (status {status}): is this an OpenAI-compatible address, "
            "like http://127.0.0.1:8000/v1? If it lists none, give --model"
        ) from None


class Prober:
    """Tries requests on one endpoint."""

    def __init__(self, client: Client, name: str, model: str, extra: Mapping[str, Any]) -> None:
        self._client, self._extra = client, extra
        self._endpoint = Endpoint(name, client.url, model)

    async def find(self, path: str) -> Endpoint | None:
        """The endpoint as it can be used at the path; None where it has no such path.

        A refused request is tried again without the fields that not every server takes.
        """
        refusal = ""
        for left_out in _omissions(path):
            self._endpoint = msgspec.structs.replace(self._endpoint, path=path, left_out=left_out)
            outcome = await self._ask(PROBES[0])
            if outcome.error is None:
                return await self._sized(outcome)
            refusal = refusal or outcome.error
            if outcome.error.startswith(ABSENT) and "model" not in outcome.error:
                return None
            if not outcome.error.startswith(REFUSED):
                break
        raise BenchError(f"{self._client.url}{path} refuses a small request: {refusal}")

    async def _sized(self, first: Outcome) -> Endpoint:
        """With how it counts."""
        endpoint = self._endpoint
        endpoint.usage = first.completion_tokens is not None
        counts = [await self._count(words) for words in PROBES]
        known = [tokens for tokens in counts if tokens is not None]
        if len(known) == len(PROBES):
            endpoint.sizing = fitted(*known)
        return endpoint

    def _body(self, words: Sequence[str]) -> dict[str, Any]:
        return request_body(self._endpoint, Arrival(0.0, "probe", 1), " ".join(words), self._extra)

    async def _ask(self, words: Sequence[str]) -> Outcome:
        return await ask(self._client, self._endpoint.path, self._body(words))

    async def _count(self, words: Sequence[str]) -> int | None:
        """Tokens of such a prompt, from the stream's usage or else from that of a whole answer."""
        asked = await self._ask(words)
        if asked.prompt_tokens is not None:
            return asked.prompt_tokens
        body = self._body(words)
        body.pop("stream_options", None)
        _, raw = await self._client.post(self._endpoint.path, body | {"stream": False})
        try:
            return int(raw["usage"]["prompt_tokens"])
        except (KeyError, TypeError):
            return None


def _omissions(path: str) -> list[list[str]]:
    """What to leave out, least first."""
    fields = ["ignore_eos", "stream_options", *(["max_tokens"] if path == CHAT else [])]
    return [list(out) for count in range(len(fields) + 1) for out in combinations(fields, count)]


async def ask(client: Client, path: str, body: Mapping[str, Any]) -> Outcome:
    """One request outside of any schedule."""
    outcome = Outcome("probe", 0, 0.0, 1, 0.0)
    await client.stream(path, msgspec.json.encode(body), outcome, time.perf_counter(), Tally())
    return outcome
