"""JSON schemas of what the server answers: the fields that an answer has in any case, and their types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenspeed.api.error_shapes import (
    ErrorShape,
    anthropic_error,
    llamacpp_error,
    ollama_error,
    openai_error,
)

Schema = Mapping[str, Any]


class Shape(NamedTuple):
    """A schema and what it is called."""

    name: str
    schema: Schema


TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
SWITCH: Schema = {"type": "boolean"}
LIST: Schema = {"type": "array"}
OBJECT: Schema = {"type": "object"}


def record(**fields: Schema) -> Schema:
    """An object that has all these fields, and perhaps others."""
    return {"type": "object", "properties": fields, "required": list(fields)}


def shape(name: str, **fields: Schema) -> Shape:
    """Such an object, with a name."""
    return Shape(name, record(**fields))


def is_(*words: str) -> Schema:
    """One of these words."""
    return {"type": "string", "enum": list(words)}


def or_none(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def either(name: str, *schemas: Schema) -> Shape:
    return Shape(name, {"anyOf": list(schemas)})


_LISTED = list_of(record(id=TEXT))
_VECTORS = list_of(list_of(NUMBER))

# OpenAPI has no words for what is in a stream, and its readers differ: some hold the whole to a schema, some
# each event.
STREAM = Shape("Events", {"description": "Server-sent events."})
LINES = Shape("Lines", {"description": "A JSON object in each line."})
PLAIN = Shape("Text", TEXT)
ANY_OBJECT = Shape("AnyObject", OBJECT)

# -- OpenAI's, and Mistral's ---------------------------------------------------------------------------

_COMPLETION: Mapping[str, Schema] = {"id": TEXT, "created": WHOLE, "model": TEXT}
_USAGE = record(prompt_tokens=WHOLE, completion_tokens=WHOLE, total_tokens=WHOLE)
CHAT_COMPLETION = shape(
    "ChatCompletion",
    **_COMPLETION,
    object=is_("chat.completion"),
    choices=list_of(record(index=WHOLE, message=record(role=TEXT), finish_reason=TEXT)),
    usage=_USAGE,
)
COMPLETION = shape(
    "Completion",
    **_COMPLETION,
    object=is_("text_completion"),
    choices=list_of(record(index=WHOLE, text=TEXT, finish_reason=TEXT)),
    usage=_USAGE,
)
EMBEDDINGS = shape(
    "Embeddings",
    object=is_("list"),
    model=TEXT,
    data=list_of(record(object=is_("embedding"), index=WHOLE, embedding={"type": ["array", "string"]})),
    usage=record(prompt_tokens=WHOLE, total_tokens=WHOLE),
)
RESPONSE = shape(
    "Response",
    id=TEXT,
    object=is_("response"),
    created_at=WHOLE,
    status=is_("completed", "incomplete"),
    model=TEXT,
    output=list_of(record(type=TEXT)),
    usage=record(input_tokens=WHOLE, output_tokens=WHOLE, total_tokens=WHOLE),
)
INPUT_TOKENS = shape("InputTokens", object=is_("response.input_tokens"), input_tokens=WHOLE)
DELETED_RESPONSE = shape("DeletedResponse", id=TEXT, object=is_("response"), deleted=SWITCH)
INPUT_ITEMS = shape(
    "InputItems", object=is_("list"), data=_LISTED, first_id=TEXT, last_id=TEXT, has_more=SWITCH
)
_OPENAI_MODEL = record(id=TEXT, object=is_("model"), created=WHOLE, owned_by=TEXT, context_length=WHOLE)
_OPENAI_MODELS = record(object=is_("list"), data=list_of(_OPENAI_MODEL))

# -- Anthropic's ---------------------------------------------------------------------------------------

MESSAGE = shape(
    "MessageAnswer",
    id=TEXT,
    type=is_("message"),
    role=is_("assistant"),
    model=TEXT,
    content=list_of(record(type=TEXT)),
    stop_reason=TEXT,
    stop_sequence=or_none(TEXT),
    usage=record(input_tokens=WHOLE, output_tokens=WHOLE),
)
MESSAGE_TOKENS = shape("MessageTokens", input_tokens=WHOLE)
_ANTHROPIC_MODEL = record(id=TEXT, type=is_("model"), display_name=TEXT, created_at=TEXT)
_ANTHROPIC_MODELS = record(data=list_of(_ANTHROPIC_MODEL), has_more=SWITCH)
MODEL = either("Model", _OPENAI_MODEL, _ANTHROPIC_MODEL)
MODELS = either("Models", _OPENAI_MODELS, _ANTHROPIC_MODELS)

# -- Ollama's, and LM Studio's -------------------------------------------------------------------------

_LINE: Mapping[str, Schema] = {"model": TEXT, "created_at": TEXT, "done": SWITCH, "done_reason": TEXT}
OLLAMA_CHAT = shape("OllamaChatAnswer", **_LINE, message=record(role=TEXT, content=TEXT))
OLLAMA_GENERATE = shape("OllamaGenerateAnswer", **_LINE, response=TEXT)
OLLAMA_EMBED = shape("OllamaEmbedAnswer", model=TEXT, embeddings=_VECTORS, prompt_eval_count=WHOLE)
OLLAMA_EMBEDDING = shape("OllamaEmbeddingAnswer", embedding=list_of(NUMBER))
OLLAMA_MODELS = shape("OllamaModels", models=list_of(record(name=TEXT, model=TEXT, details=OBJECT)))
OLLAMA_MODEL = shape("OllamaModel", details=OBJECT, model_info=OBJECT, capabilities=list_of(TEXT))
OLLAMA_STATUS = shape("OllamaStatus", status=TEXT)
VERSION = shape("Version", version=TEXT)
_LMSTUDIO_MODEL = record(id=TEXT, object=is_("model"), type=TEXT, state=TEXT, max_context_length=WHOLE)
LMSTUDIO_MODEL = Shape("LMStudioModel", _LMSTUDIO_MODEL)
LMSTUDIO_MODELS = shape("LMStudioModels", object=is_("list"), data=list_of(_LMSTUDIO_MODEL))

# -- llama.cpp's ---------------------------------------------------------------------------------------

# A request may say which fields there are (`response_fields`), and several answers are a list.
LLAMA_COMPLETION = Shape(
    "LlamaCompletion",
    {
        "anyOf": [
            {"type": "object", "properties": {"content": TEXT, "stop": SWITCH, "tokens_predicted": WHOLE}},
            list_of(OBJECT),
        ]
    },
)
TOKENS = shape("Tokens", tokens={"type": "array", "items": {"type": ["integer", "object"]}})
CONTENT = shape("Content", content=TEXT)
RENDERED = shape("Rendered", prompt=TEXT)
PROPS = shape("Props", default_generation_settings=OBJECT, total_slots=WHOLE, chat_template=TEXT)
SLOTS = Shape("Slots", list_of(record(id=WHOLE, n_ctx=WHOLE, is_processing=SWITCH)))

# -- this server's own ---------------------------------------------------------------------------------

STATUS = shape("Status", status=TEXT)
TIMELINE = shape("Timeline", id=TEXT, state=TEXT, why=TEXT, arrived=NUMBER)

# -- errors --------------------------------------------------------------------------------------------

ERRORS: Mapping[ErrorShape, Shape] = {
    openai_error: shape(
        "OpenAIError",
        error=record(message=TEXT, type=TEXT, param=or_none(TEXT), code=or_none(TEXT)),
    ),
    anthropic_error: shape("AnthropicError", type=is_("error"), error=record(type=TEXT, message=TEXT)),
    ollama_error: shape("OllamaError", error=TEXT),
    llamacpp_error: shape("LlamaError", error=record(code=WHOLE, message=TEXT, type=TEXT)),
}
