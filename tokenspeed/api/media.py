"""The media types of answers."""

from __future__ import annotations

JSON = "application/json"
SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
PLAIN_TEXT = "text/plain"
