"""What the description says is so: requests made of it are answered as it says, and never with a 5xx."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.hostile import ENDPOINTS
from tokenspeed.api.responses_store import ResponseStore
from tokenspeed.generation.request import Limits

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
PROTOCOLS = ("OpenAI", "Anthropic", "Mistral", "Ollama", "LM Studio", "llama.cpp", "TokenSpeed")
MANY, FEW = 12, 3  # requests to an endpoint with a body, and without one


@pytest.fixture(scope="module")
def url(serving, listening, tmp_path_factory) -> Iterator[str]:
    """A server in a thread, for what asks it is synchronous."""
    loop, over = asyncio.new_event_loop(), asyncio.Event()
    started, found = threading.Event(), []
    store = ResponseStore(tmp_path_factory.mktemp("kept"), most_bytes=2**24, max_age=3600.0)

    async def serve() -> None:
        async with (
            serving(limits=Limits(max_tokens=8), context=256, store=store, any_name=True) as server,
            listening(server.app) as address,
        ):
            found.append(address)
            started.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    started.wait()
    yield found[0]
    loop.call_soon_threadsafe(over.set)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def description(url) -> dict[str, Any]:
    found: dict[str, Any] = requests.get(f"{url}/openapi.json", timeout=30).json()
    return found


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def test_every_protocol_is_put_to_the_proof(description):
    assert [tag["name"] for tag in description["tags"]] == list(PROTOCOLS)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_answers_are_as_described(url, session, description, protocol, mode):
    """Both to what fits the description and to what does not."""
    api = schemathesis.openapi.from_dict(description).include(tag=protocol)
    for found in api.get_all_operations():
        operation = found.ok()
        takes = bool(operation.body)
        if mode is GenerationMode.NEGATIVE and not takes:
            continue  # there is nothing that could be wrong

        @settings(max_examples=MANY if takes else FEW, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode), sound=st.booleans())
        def check(case: Case, sound: bool) -> None:
            if sound and mode is GenerationMode.POSITIVE and case.path in ENDPOINTS:
                case.body = {**case.body, **ENDPOINTS[case.path].body}  # so that more of them are answered
            response = case.call(base_url=url, session=session, timeout=30)
            case.validate_response(response, checks=CHECKS)

        check()
