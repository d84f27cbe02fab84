"""What there is beside responses: those that are kept, to read again, to list what they answer, to let go of;
and a count of what one would have to read."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tokenspeed.api.body import parse
from tokenspeed.api.disconnect import unless_gone
from tokenspeed.api.endpoint import Asking, Job, Service, read_request
from tokenspeed.api.keys import Caller, caller_of
from tokenspeed.api.media import JsonResponse
from tokenspeed.api.responses import ResponsesDialect, is_slow
from tokenspeed.api.responses_store import Record, ResponseStore
from tokenspeed.api.tools import wrong
from tokenspeed.errors import NotFoundError, RequestError

MOST_LISTED = 100


class CountInputEndpoint:
    """Counts what the input of a response would have, whatever it goes on from included."""

    def __init__(self, dialect: ResponsesDialect, service: Service) -> None:
        self._dialect = dialect
        self._service = service

    async def create(self, http: Request) -> Response:
        job, _ = await read_request(http, self._service, self._read, slow=is_slow)
        count = await unless_gone(http.receive, self._service.generator.count(job.request))
        return JsonResponse({"object": "response.input_tokens", "input_tokens": count})

    def _read(self, body: bytes, caller: Caller) -> Job:
        asked = parse(body, self._dialect.decoder)
        return self._dialect.read(asked, Asking(body, self._service.model.resolve(asked.model), caller))


class StoredResponsesEndpoint:
    """To each account its own. Without a `store` there are none."""

    def __init__(self, store: ResponseStore | None) -> None:
        self._store = store

    async def get_one(self, http: Request) -> Response:
        if http.query_params.get("stream", "").lower() == "true":
            raise RequestError(
                "stream is not supported for a response that is over; leave it out",
                param="stream",
                code="unsupported_parameter",
            )
        return JsonResponse((await self._record(http)).response)

    async def delete(self, http: Request) -> Response:
        """What went on from it is lost as well: it would need what was deleted."""
        response_id = http.path_params["id"]
        deleted = self._store is not None and await asyncio.to_thread(
            self._store.delete, caller_of(http).account, response_id
        )
        if not deleted:
            raise _not_found(response_id)
        return JsonResponse({"id": response_id, "object": "response", "deleted": True})

    async def input_items(self, http: Request) -> Response:
        """Those of the request itself; what came before is with the response that it goes on from."""
        query = http.query_params
        limit, order = query.get("limit") or "20", query.get("order") or "desc"
        if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= MOST_LISTED):
            raise wrong("limit", f"must be between 1 and {MOST_LISTED}")
        if order not in ("asc", "desc"):
            raise wrong("order", "must be asc or desc")
        items = (await self._record(http)).input
        return JsonResponse(_page(items if order == "asc" else items[::-1], query.get("after"), int(limit)))

    async def cancel(self, http: Request) -> Response:
        await self._record(http)
        raise RequestError(
            "Only responses in the background can be cancelled, and this server has none: close the "
            "connection of a response to end it.",
            code="unsupported_operation",
        )

    async def _record(self, http: Request) -> Record:
        response_id, account = http.path_params["id"], caller_of(http).account
        if self._store is None:
            raise _not_found(response_id)
        record = await asyncio.to_thread(self._store.load, account, response_id)
        if record is None:
            raise _not_found(response_id)
        return record


def _page(items: Sequence[Mapping[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """Up to `limit` items behind the one with the id `after`, if that is given."""
    ids = [item["id"] for item in items]
    if after and after not in ids:
        raise wrong("after", f"names {after[:100]!r}, which is not among the items")
    begin = ids.index(after) + 1 if after else 0
    data = items[begin : begin + limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else "",
        "last_id": data[-1]["id"] if data else "",
        "has_more": begin + limit < len(items),
    }


def _not_found(response_id: str) -> NotFoundError:
    return NotFoundError(
        f"There is no response {response_id[:100]!r} here: those with store = false are not kept, others for "
        "a while.",
        param="response_id",
        code="response_not_found",
    )
