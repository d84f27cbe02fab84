"""A client that vanishes ends the work that is done for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from tokenspeed.api.errors import ClientGoneError

T = TypeVar("T")


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled, and `ClientGoneError` raised, once the client is gone.

    The request's body must have been read.
    """
    task = asyncio.create_task(work)
    watch = asyncio.create_task(gone(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def gone(receive: Receive) -> None:
    """Until the client is; its request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
