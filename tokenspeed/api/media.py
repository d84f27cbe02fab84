"""The media types of answers."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

JSON = "application/json"
SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
PLAIN_TEXT = "text/plain"


class JsonResponse(Response):
    """A value written as JSON; numpy's arrays are lists there."""

    media_type = JSON

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
