"""`GET /requests/{id}/timeline`: why a request took as long as it did."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from tokenspeed.api.keys import caller_of
from tokenspeed.api.media import JsonResponse
from tokenspeed.engine.timeline import Timeline
from tokenspeed.errors import NotFoundError


class TimelineEndpoint:
    """Tells what is kept of a request, running or done, to whoever's request it is.

    An answer's id is that of its first prompt; those of the others have "-1", "-2", ... behind it.
    """

    def __init__(self, timeline: Callable[[str], Timeline | None]) -> None:
        self._timeline = timeline

    async def get_one(self, http: Request) -> Response:
        request_id, account = http.path_params["id"], caller_of(http).account
        timeline = self._timeline(request_id)
        if timeline is None or timeline.account != account:
            raise NotFoundError(
                f"There is no request {request_id[:100]!r} here; only the latest ones are kept.",
                code="request_not_found",
            )
        return JsonResponse(timeline.to_dict(account))
