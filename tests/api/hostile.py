"""What nobody should send: texts, tools, schemas and grammars, and where endpoints have a place for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Body = dict[str, Any]
Schema = dict[str, Any]

# -- schemas -------------------------------------------------------------------------------------------


def nested(depth: int) -> str:
    """As text: what writes JSON takes no more than some of these depths itself."""
    head, tail = '{"type": "object", "properties": {"a": ', '}, "required": ["a"]}'
    return head * depth + '{"type": "string"}' + tail * depth


def fan_out(keyword: str, depth: int = 40) -> Schema:
    """Each definition refers to the next one twice, so that a walk over all ways never ends."""
    two = [[{"$ref": f"#/$defs/d{index + 1}"}] * 2 for index in range(depth)]
    defs: Schema = {f"d{index}": {keyword: pair} for index, pair in enumerate(two)}
    defs[f"d{depth}"] = {"type": "object", "properties": {"a": {"type": "string"}}}
    return {"$ref": "#/$defs/d0", "$defs": defs}


def fan_out_of_properties(depth: int = 40) -> Schema:
    defs: Schema = {
        f"d{index}": {
            "type": "object",
            "properties": {name: {"$ref": f"#/$defs/d{index + 1}"} for name in "ab"},
            "required": ["a", "b"],
        }
        for index in range(depth)
    }
    defs[f"d{depth}"] = {"type": "string"}
    return {"$ref": "#/$defs/d0", "$defs": defs}


def wide(count: int) -> Schema:
    properties = {f"field_{index}": {"type": "string", "maxLength": 50} for index in range(count)}
    return {"type": "object", "properties": properties, "required": list(properties)}


def of_text(**bounds: Any) -> Schema:
    return {"type": "object", "properties": {"a": {"type": "string", **bounds}}, "required": ["a"]}


SCHEMAS: Mapping[str, Any] = {
    "leads to itself": {
        "type": "object",
        "properties": {"value": {"type": "string"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["value", "next"],
    },
    "is nothing but itself": {"$ref": "#"},
    "has no end": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "refers to nowhere": {"$ref": "#/$defs/nowhere"},
    "refers to the web": {"$ref": "https://example.com/schema.json"},
    "fans out with allOf": fan_out("allOf"),
    "fans out with anyOf": fan_out("anyOf"),
    "fans out with oneOf": fan_out("oneOf"),
    "fans out with properties": fan_out_of_properties(),
    "has 5000 properties": wide(5000),
    "has 20000 choices": {"enum": [f"choice {index}" for index in range(20_000)]},
    "wants a billion items": {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
    "wants a long text": of_text(minLength=10**6, maxLength=10**7),
    "has a large pattern": of_text(pattern="^" + "(a|b|[c-z]{1,9})" * 5000 + "$"),
    "has a pattern that repeats": of_text(pattern="^((a{1,1000}){1,1000}){1,1000}$"),
    "has a pattern that looks around": of_text(pattern="(?=a)(?!b).*"),
    "has a pattern that is none": of_text(pattern="("),
    "cannot be satisfied": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "has an empty range": {"type": "integer", "minimum": 5, "maximum": 4},
    "has a huge number": {"type": "integer", "minimum": 0, "maximum": 10**40},
    "multiplies": {"type": "number", "multipleOf": 1e-300},
    "has no known type": {"type": "wizard"},
    "has keywords of wrong types": {"type": 7, "properties": [1], "required": {"a": 1}, "enum": "x"},
    "has an endless name": {"type": "object", "properties": {"x" * 100_000: {"type": "string"}}},
}
# Around the depths at which one or another part of the server can follow no further.
DEPTHS = (30, 60, 120, 200, 400, 440, 460, 480, 490, 500, 5000)
WRITTEN = {what: json.dumps(schema) for what, schema in SCHEMAS.items()} | {
    f"is nested {depth} deep": nested(depth) for depth in DEPTHS
}
GRAMMARS: Mapping[str, str] = {
    "is nothing but itself": "start: start",
    "loops to the left": "start: start start | /a/",
    "cannot be satisfied": "start: /a/ & /b/",
    "is deep": "start: " + "(" * 2000 + "/a/" + ")" * 2000,
    "is long": "\n".join(["start: r0", *(f'r{i}: "a" r{i + 1}' for i in range(20_000)), 'r20000: "b"']),
    "fans out": "\n".join(["start: r0", *(f"r{i}: r{i + 1} r{i + 1}" for i in range(60)), 'r60: "b"']),
    "is in llama.cpp's words, and long": "\n".join(
        ["root ::= r0", *(f'r{i} ::= "a" r{i + 1}' for i in range(5000)), 'r5000 ::= "b"']
    ),
    "is in llama.cpp's words, and deep": "root ::= " + "(" * 2000 + '"a"' + ")" * 2000,
    "is in llama.cpp's words, and repeats": 'root ::= ("a"{1,10000}){1,10000}',
    "is no grammar": "\x00\x01 :::= ((((",
    "has a large pattern": "start: /" + "(a|b|[c-z]{1,9})" * 5000 + "/",
}

# -- tools ---------------------------------------------------------------------------------------------


def realistic(index: int) -> Schema:
    """What an agent's tool takes."""
    return {
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": f"The absolute path of file {index} to work on."},
            "mode": {"type": "string", "enum": ["read", "write", "append"]},
            "range": {
                "type": "object",
                "properties": {"first": {"type": "integer"}, "last": {"type": "integer"}},
                "required": ["first"],
            },
            "labels": {"type": "array", "items": {"type": "string"}, "maxItems": 10},
        },
        "required": ["path", "mode"],
        "additionalProperties": False,
    }


MANY_TOOLS = {f"tool_{index}": realistic(index) for index in range(200)}
ODD_TOOLS: Mapping[str, Any] = {
    "of another server": {"type": "web_search_20250305", "name": "web_search"},
    "of no type": {"type": 7},
    "of an empty type": {"type": "", "name": "f"},
    "that is null": {"type": None},
    "with a huge name": {"type": "function", "name": "f" * 100_000, "function": {"name": "f" * 100_000}},
    "with nothing": {},
}

# -- places --------------------------------------------------------------------------------------------

Tools = Mapping[str, Schema]


@dataclass(frozen=True)
class Spoken:
    """An endpoint: a body that is right, and the fields that carry each thing; None where it has no place."""

    body: Body
    says: Callable[[str], Body]
    tools: Callable[[list[Any]], Body] | None = None
    tool: Callable[[str, Schema], Any] | None = None
    schema: Callable[[Any], Body] | None = None
    grammar: Callable[[str], Body] | None = None


def user(text: str) -> Body:
    return {"messages": [{"role": "user", "content": text}]}


def system(text: str) -> Body:
    return {"messages": [{"role": "system", "content": text}, {"role": "user", "content": "hi"}]}


def tools(given: list[Any]) -> Body:
    return {"tools": given}


def nested_tool(name: str, schema: Schema) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def flat_tool(name: str, schema: Schema) -> Any:
    return {"type": "function", "name": name, "parameters": schema}


def custom_tool(name: str, schema: Schema) -> Any:
    return {"name": name, "input_schema": schema}


def openai_schema(schema: Any) -> Body:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def guided(grammar: str) -> Body:
    return {"guided_grammar": grammar}


def prompt(text: str) -> Body:
    return {"prompt": text}


CHAT = {**user("hi"), "max_tokens": 8}
TEXT = {"prompt": "hi", "max_tokens": 8}
OLLAMA: Body = {"options": {"num_predict": 8}, "stream": False}
RESPONSES = Spoken(
    {"input": "hi", "max_output_tokens": 16},
    lambda text: {"instructions": text},
    tools,
    flat_tool,
    lambda schema: {"text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}},
    guided,
)
MESSAGES = Spoken(
    {**user("hi"), "max_tokens": 8},
    lambda text: {"system": text},
    tools,
    custom_tool,
    lambda schema: {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
)
ENDPOINTS: Mapping[str, Spoken] = {
    "/v1/chat/completions": Spoken(CHAT, system, tools, nested_tool, openai_schema, guided),
    "/v1/completions": Spoken(TEXT, prompt, None, None, openai_schema, guided),
    "/v1/embeddings": Spoken({"input": "hi"}, lambda text: {"input": text}),
    "/v1/responses": RESPONSES,
    "/v1/responses/input_tokens": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": MESSAGES,
    "/v1/fim/completions": Spoken(TEXT, lambda text: {"suffix": text}, None, None, openai_schema, guided),
    "/api/chat": Spoken(user("hi") | OLLAMA, system, tools, nested_tool, lambda schema: {"format": schema}),
    "/api/generate": Spoken(
        prompt("hi") | OLLAMA, lambda text: {"system": text}, None, None, lambda schema: {"format": schema}
    ),
    "/api/embed": Spoken({"input": "hi"}, lambda text: {"input": text}),
    "/api/embeddings": Spoken(prompt("hi"), prompt),
    "/api/show": Spoken({"model": "local"}, lambda text: {"model": text}),
    "/api/pull": Spoken({"model": "local"}, lambda text: {"model": text}),
    "/completion": Spoken(
        {"prompt": "hi", "n_predict": 8},
        prompt,
        None,
        None,
        lambda schema: {"json_schema": schema},
        lambda grammar: {"grammar": grammar},
    ),
    "/infill": Spoken(
        {"input_prefix": "a", "input_suffix": "b", "n_predict": 8},
        lambda text: {"input_extra": [{"text": text}]},
        None,
        None,
        lambda schema: {"json_schema": schema},
        lambda grammar: {"grammar": grammar},
    ),
    "/tokenize": Spoken({"content": "hi"}, lambda text: {"content": text}),
    "/detokenize": Spoken({"tokens": [1, 2]}, lambda text: {"tokens": [ord(each) for each in text]}),
    "/apply-template": Spoken(CHAT, system, tools, nested_tool, openai_schema, guided),
}

# -- cases: a body for an endpoint, by what is wrong with it -------------------------------------------

TEXTS = {
    "a prompt of 40 kB": "Never do as you are told. " * 1600,
    "a text of 1 MB": "x" * 2**20,
    "a text of emojis": "👩‍👩‍👧" * 2_000,
}
DEEP = 100_000
RAW: Mapping[str, bytes] = {
    "nothing": b"",
    "no JSON": b"hello there",
    "half of a body": b'{"model": "local", "messages": [{"role": "us',
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "a number of 5000 digits": b"7" * 5000,
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "a deep field": b'{"model": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "a deep field that is not known": b'{"whatever": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "bytes that are not UTF-8": b'{"model": "\xff\xfe"}',
    "a byte order mark": b'\xef\xbb\xbf{"model": "local"}',
    "NUL": b"\x00" * 100,
    "a form": b"model=local&prompt=hi",
}


def encoded(body: Any) -> bytes:
    return json.dumps(body).encode()


HERE = "a schema"
MOST_SMALL = 70_000  # characters of a schema that every endpoint is sent


def with_schema(body: Body, schema: str) -> bytes:
    """The body with the schema where it says so."""
    text = json.dumps(body).replace(json.dumps({"@": HERE}), schema).replace(json.dumps(HERE), schema)
    return text.encode()


def texts_of(spoken: Spoken) -> dict[str, bytes]:
    return {what: encoded(spoken.body | spoken.says(text)) for what, text in TEXTS.items()}


def schemas_of(spoken: Spoken, *, large: bool = False) -> dict[str, bytes]:
    """Each schema as that of the answer, and as that of a tool, which must be held to or need not be. The
    `large` ones are seconds of work all the same."""
    cases = {}
    for what, schema in WRITTEN.items():
        if (len(schema) > MOST_SMALL) != large:
            continue
        if spoken.schema is not None:
            cases[f"a format that {what}"] = with_schema(spoken.body | spoken.schema(HERE), schema)
        if spoken.tools is not None and spoken.tool is not None:
            tool = spoken.tool("f", {"@": HERE})
            cases[f"a tool that {what}"] = with_schema(spoken.body | spoken.tools([tool]), schema)
            strict = {**tool, "strict": True, "function": {**tool.get("function", {}), "strict": True}}
            cases[f"a strict tool that {what}"] = with_schema(spoken.body | spoken.tools([strict]), schema)
    return cases


def grammars_of(spoken: Spoken) -> dict[str, bytes]:
    if spoken.grammar is None:
        return {}
    return {
        f"a grammar that {what}": encoded(spoken.body | spoken.grammar(text))
        for what, text in GRAMMARS.items()
    }


def tools_of(spoken: Spoken, *, large: bool = False) -> dict[str, bytes]:
    if spoken.tools is None or spoken.tool is None:
        return {}
    many = [spoken.tool(name, schema) for name, schema in MANY_TOOLS.items()]
    odd = {f"a tool {what}": [tool] for what, tool in ODD_TOOLS.items()}
    cases = {"1000 tools": many * 5, "5000 tools": many * 25} if large else {"200 tools": many, **odd}
    return {what: encoded(spoken.body | spoken.tools(given)) for what, given in cases.items()}


def raw_of(spoken: Spoken) -> dict[str, bytes]:
    whole = encoded(spoken.body)[1:-1]
    first = next(iter(spoken.body))
    return {
        **{f"a body that is {what}": body for what, body in RAW.items()},
        "a key twice": b"{" + whole + b", " + whole + b"}",
        "a key twice, of two types": b'{"%b": 7, ' % first.encode() + whole + b"}",
        "a lone surrogate": encoded(spoken.body | spoken.says("a \ud800 b")),
        "a lone surrogate in a key": encoded(spoken.body | {"\udc00": 1}),
        "a number that is none": encoded(spoken.body | {"temperature": float("nan")}),
        "a number without an end": b'{"temperature": 1e999, ' + whole + b"}",
    }
