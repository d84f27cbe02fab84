"""The description lists what is served, in the types that requests are decoded as."""

from __future__ import annotations

import pytest

from tokenspeed.api.middleware import normal_path
from tokenspeed.api.options import KeyOptions

KEYS = {"alice": KeyOptions("sk-alice-0001")}
# What no value of a scalar type is.
WRONG = {"string": [7], "integer": "seven", "number": "seven", "boolean": "yes", "array": 7, "object": 7}


def operations(description):
    """Each described request: its method, its path, and what is said of it."""
    return [
        (method.upper(), path, operation)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]


def body_of(description, operation):
    """The schema of a request's body, or None."""
    if "requestBody" not in operation:
        return None
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    return description["components"]["schemas"][reference.rpartition("/")[2]]


def types_of(schema):
    """The types that the schema itself names; none where it takes anything."""
    ways = schema.get("anyOf", [schema])
    if any("type" not in way and "$ref" not in way and "enum" not in way for way in ways):
        return set()
    return {way.get("type", "object" if "$ref" in way else "string") for way in ways}


@pytest.fixture
async def description(server):
    answer = await server.get("/openapi.json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    return answer.json()


async def test_the_description_lists_exactly_what_is_served(server, description):
    described = {(method, normal_path(path)) for method, path, _ in operations(description)}
    served = {
        (method, route.path.replace(":path}", "}"))
        for route in server.app.app.routes
        for method in route.methods - ({"HEAD"} if "GET" in route.methods else set())
    }
    assert described == served


async def test_a_described_path_allows_the_methods_that_are_described_and_no_others(server, description):
    for path, methods in description["paths"].items():
        refused = await server.get(path, method="PATCH")
        assert refused.status == 405
        allowed = set(refused.headers["allow"].split(", "))
        assert allowed - {"HEAD"} == {method.upper() for method in methods} - {"HEAD"}, path


async def test_a_path_is_described_as_its_clients_write_it(description):
    assert {"/v1/chat/completions", "/v1/messages", "/api/chat", "/completion"} <= description["paths"].keys()
    assert description["paths"]["/v1/models/{id}"]["get"]["parameters"][0] == {
        "in": "path",
        "name": "id",
        "required": True,
        "schema": {"type": "string"},
    }


async def test_each_field_of_a_body_is_described_as_it_is_decoded(server, description):
    """A value of a type that is not described is an error that names the field."""
    tried = 0
    for method, path, operation in operations(description):
        schema = body_of(description, operation)
        for name, field in (schema or {"properties": {}})["properties"].items():
            types = types_of(field)
            wrong = next((value for kind, value in WRONG.items() if not fits(value, types)), None)
            if not types or wrong is None:
                continue
            answer = await server.call(path, {name: wrong}, method=method).answer()
            assert (answer.status, name in answer.body.decode()) == (400, True), (path, name, answer.body)
            tried += 1
    assert tried > 200


def fits(value, types):
    """Whether a JSON value is of one of the types."""
    kinds = {int: {"integer", "number"}, str: {"string"}, list: {"array"}}[type(value)]
    return bool(kinds & types)


async def test_what_a_body_must_have_is_described(server, description):
    for method, path, operation in operations(description):
        for name in (body_of(description, operation) or {}).get("required", ()):
            answer = await server.call(path, {}, method=method).answer()
            assert (answer.status, f"{name} is required" in answer.body.decode()) == (400, True)


async def test_every_reference_leads_somewhere_and_every_component_is_used(description):
    def references(value):
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"].rpartition("/")[2]
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    assert set(references(description)) == description["components"]["schemas"].keys()


async def test_no_two_things_have_one_name(description):
    ids = [operation["operationId"] for _, _, operation in operations(description)]
    assert len(set(ids)) == len(ids)


async def test_each_protocol_has_its_own_error(description):
    shapes = {
        path: description["paths"][path]["post"]["responses"]["400"]["content"]["application/json"]["schema"]
        for path in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/completion")
    }
    names = [shape["$ref"].rpartition("/")[2] for shape in shapes.values()]
    assert names == ["OpenAIError", "AnthropicError", "OllamaError", "LlamaError"]


async def test_a_key_is_described_as_optional_where_there_are_none(serving, description):
    schemes = [{"bearer": []}, {"header": []}]
    assert description["security"] == [*schemes, {}]
    async with serving(keys=KEYS) as locked:
        assert (await locked.get("/openapi.json")).status == 401
        keyed = (await locked.get("/openapi.json", authorization="Bearer sk-alice-0001")).json()
    assert keyed["security"] == schemes
    assert keyed["paths"]["/health"]["get"]["security"] == []


async def test_the_description_is_written_once(server):
    first, second = await server.get("/openapi.json"), await server.get("/v1/openapi.json")
    assert first.body == second.body


async def test_the_input_of_a_response_is_counted_as_it_would_be_read(server):
    asked = {"input": "How are you?", "instructions": "Be brief."}
    counted = await server.post("/v1/responses/input_tokens", asked)
    answered = (await server.post("/v1/responses", asked | {"max_output_tokens": 1})).json()
    tokens = answered["usage"]["input_tokens"]
    assert counted.json() == {"object": "response.input_tokens", "input_tokens": tokens}


async def test_what_cannot_be_counted_is_an_error_as_it_is_elsewhere(server):
    answer = await server.post("/v1/responses/input_tokens", {})
    assert (answer.status, answer.error["param"]) == (400, "input")
