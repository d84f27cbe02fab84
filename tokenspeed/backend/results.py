"""What a row asks to be drawn, and what it gets: the same on every device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from tokenspeed.core.plan import NOTHING, Draw, Row, RowResult
from tokenspeed.core.request import TokenLogprob, Vector
from tokenspeed.model.sampler import NOT_FINITE, Sampled

STOPPED = "the server is shutting down; send the request again elsewhere or later"
SOURCE_FAILED = "the step before it gave no token"


def draws_of(row: Row) -> list[Draw]:
    """The draw after the row's last token and after each of its drafts; none where it samples nothing."""
    draw = row.draw
    if draw is None:
        return []
    return [draw, *(draw_after(draw, row.drafts[:ahead]) for ahead in range(1, 1 + len(row.drafts)))]


def draw_after(draw: Draw, drafts: tuple[int, ...]) -> Draw:
    """The draw behind `drafts`, of a row that draws with `draw` before them."""
    generated = draw.generated + drafts if draw.sampling.penalised else draw.generated
    return draw._replace(position=draw.position + len(drafts), generated=generated)


def with_pooled(result: RowResult, summed: Vector) -> RowResult:
    """The row's result with the sum of its hidden states, float64 [hidden]."""
    if result.error is not None:
        return result
    return result._replace(pooled=summed) if np.isfinite(summed).all() else RowResult(error=NOT_FINITE)


def result_of(row: Row, verified: Sequence[Sampled], scored: Sequence[TokenLogprob | None]) -> RowResult:
    """What the row gave: of the tokens sampled after it and its drafts, those up to the first surprise."""
    if not verified and not scored:
        return NOTHING
    tokens: list[int] = []
    logprobs: list[TokenLogprob] = []
    for sampled, draft in zip_longest(verified, row.drafts):
        if sampled.error is not None:
            if not tokens:
                return RowResult(error=sampled.error)
            break  # the tokens before it stand; the next step meets the same fault
        tokens.append(sampled.token)
        if sampled.logprob is not None:
            logprobs.append(sampled.logprob)
        if sampled.token != draft:
            break
    known = tuple(each for each in scored if each is not None)
    if len(known) < len(scored):
        return RowResult(error=NOT_FINITE)
    return RowResult(tuple(tokens), tuple(logprobs) or None, known)
