"""From logits to tokens: penalties, filters, seeded draws and log-probabilities.

A row is treated in this order: repetition penalty, frequency and presence penalties, logit bias, banned
tokens, temperature, top-k, top-p (of what top-k left), min-p. Log-probabilities are the model's own, of the
logits as they came, before all of that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenspeed.core.plan import Draw
from tokenspeed.core.request import Sampling, TokenLogprob
from tokenspeed.model.cpu import drawing
from tokenspeed.model.randomness import uniform
from tokenspeed.model.ranking import Ids, Logits, nucleus, pick, prefix_reaching, top_ids

NOT_FINITE = "the logits were not finite"
NOTHING_ALLOWED = "no token is left to sample: all are banned"
Mask = NDArray[np.int32]  # [words]
AT_ONCE = 1 << 22  # logits copied together: 16 MiB of them
# What is added to eight logits, by the bits that allow them: takes as long for any mask.
_ADDED = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 0, -np.inf
)
_ADDED = _ADDED.astype(np.float32)
COLDEST = 1e-30  # a temperature below this divides differences of logits to infinity just the same
HOTTEST = 1e30  # and one above to nothing
FAULTS = {drawing.NOT_FINITE: NOT_FINITE, drawing.NOTHING_LEFT: NOTHING_ALLOWED}


class Sampled(NamedTuple):
    """One row's token, with its log-probability where asked; or why there is none."""

    token: int
    logprob: TokenLogprob | None = None
    error: str | None = None


def sample(
    logits: Tensor, draws: Sequence[Draw], masks: Mapping[int, Mask] = MappingProxyType({})
) -> list[Sampled]:
    """One token for each row of `logits` (float32 [rows, vocab]), drawn as its `Draw` says.

    A draw depends on its own row, `sampling`, `seed` and `position` alone. Equal logits rank by id, lowest
    first. `masks`, by number of the draw, say what may be drawn: bit i % 32 of word i // 32 allows token i;
    the logits of masked rows may be changed. A row with a NaN, an infinity above or no finite logit is an
    error of that row.
    """
    rows: Logits = logits.cpu().numpy()
    plain = [number for number, draw in enumerate(draws) if _is_plain(draw)]
    free = [number for number, draw in enumerate(draws) if _is_free(draw)]
    others = sorted({*range(len(draws))} - {*plain, *free})
    sampled: dict[int, Sampled] = {
        number: _sample_row(rows[number], draws[number], masks.get(number)) for number in others
    }
    # Most rows need no more than this, and all of them at once.
    cut = [number for number in plain if number in masks and math.isfinite(rows[number].max())]
    for number in cut:
        _forbid(rows[number], masks[number])
    for numbers in _in_parts(plain, rows.shape[1]):
        sampled |= zip(numbers, _greedy(_rows(rows, numbers)), strict=True)
    sampled |= {number: Sampled(0, error=NOTHING_ALLOWED) for number in cut if sampled[number].error}
    if free:
        sampled |= zip(free, _draw_free(rows, free, [draws[number] for number in free], masks), strict=True)
    return [sampled[number] for number in range(len(draws))]


def score(logits: Tensor, targets: Sequence[int], alternatives: int) -> list[TokenLogprob | None]:
    """The log-probability of `targets[r]` under row r of `logits` (float32 [rows, vocab]), with the best
    `alternatives`; None where the logits were not finite."""
    rows: Logits = logits.cpu().numpy()
    return [
        _logprob(row, target, alternatives) if math.isfinite(row.max()) else None
        for row, target in zip(rows, targets, strict=True)
    ]


def _is_untouched(draw: Draw) -> bool:
    """Whether the logits are drawn from as they came, and nothing is asked but the token."""
    sampling = draw.sampling
    return not (sampling.logprobs is not None or sampling.logit_bias or draw.banned or sampling.penalised)


def _is_plain(draw: Draw) -> bool:
    """Whether the greatest logit is all that is asked for."""
    return draw.sampling.temperature == 0.0 and _is_untouched(draw)


def _is_free(draw: Draw) -> bool:
    """Whether the draw is from the whole vocabulary, by temperature alone."""
    return draw.sampling.temperature > 0.0 and _is_unfiltered(draw.sampling) and _is_untouched(draw)


def _is_unfiltered(sampling: Sampling) -> bool:
    return sampling.top_k == 0 and sampling.top_p >= 1.0 and sampling.min_p <= 0.0


def _in_parts(numbers: list[int], vocab: int) -> Iterator[list[int]]:
    """Runs of row numbers, each of at most `AT_ONCE` logits."""
    size = max(AT_ONCE // vocab, 1)
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _rows(rows: Logits, numbers: list[int]) -> Logits:
    """The rows of these ascending numbers; a view where they are neighbours."""
    first, last = numbers[0], numbers[-1]
    return rows[first : last + 1] if last - first + 1 == len(numbers) else rows[numbers]


def _greedy(rows: Logits) -> list[Sampled]:
    best = rows.argmax(axis=1)  # the first of equals; a NaN counts as the greatest
    finite = np.isfinite(rows[np.arange(len(rows)), best])
    both = zip(best.tolist(), finite.tolist(), strict=True)
    return [Sampled(token) if told else Sampled(0, error=NOT_FINITE) for token, told in both]


def _draw_free(
    rows: Logits, numbers: Sequence[int], draws: Sequence[Draw], masks: Mapping[int, Mask]
) -> list[Sampled]:
    """A token of the whole vocabulary, or of what its mask allows, for each of the rows `numbers`."""
    temperatures = np.array([draw.sampling.temperature for draw in draws])
    tokens = drawing.draw_rows(
        rows,
        np.array(numbers),
        np.array([masks[number].ctypes.data if number in masks else 0 for number in numbers]),
        (1.0 / np.clip(temperatures, COLDEST, HOTTEST)).astype(np.float32),
        np.array([uniform(draw.seed, draw.position) for draw in draws]),
    )
    return [Sampled(token) if token >= 0 else Sampled(0, error=FAULTS[token]) for token in tokens.tolist()]


def _scaled(logits: Logits, peak: float, temperature: float) -> Logits:
    """(logits - peak) / temperature: log-probabilities but for a common term; the greatest is 0."""
    scaled: Logits = logits - np.float32(peak)
    with np.errstate(over="ignore"):  # a tiny temperature makes all but the greatest -inf, as it should
        scaled /= np.float32(max(temperature, COLDEST))
    return scaled


def _sample_row(row: Logits, draw: Draw, mask: Mask | None = None) -> Sampled:
    sampling = draw.sampling
    if not math.isfinite(row.max()):
        return Sampled(0, error=NOT_FINITE)
    if beyond := [token for token, _ in sampling.logit_bias if not 0 <= token < len(row)]:
        return Sampled(0, error=f"logit_bias names token {beyond[0]}, but the vocabulary has {len(row)}")
    adjusted = _adjusted(row, draw)
    if mask is not None:
        adjusted = row.copy() if adjusted is row else adjusted
        _forbid(adjusted, mask)
    peak = float(adjusted.max())
    if not math.isfinite(peak):
        return Sampled(0, error=NOTHING_ALLOWED if peak == -math.inf else NOT_FINITE)
    token = int(adjusted.argmax()) if sampling.temperature == 0.0 else _draw(adjusted, peak, draw)
    wanted = sampling.logprobs
    return Sampled(token, None if wanted is None else _logprob(row, token, wanted))


def _adjusted(row: Logits, draw: Draw) -> Logits:
    """The row with penalties, bias and bans applied; the row itself where there are none."""
    sampling = draw.sampling
    if not (sampling.penalised or sampling.logit_bias or draw.banned):
        return row
    row = row.copy()
    if sampling.repetition_penalty != 1.0:
        seen = np.array(draw.prompt + draw.generated, dtype=np.intp)
        logits = row[seen]
        penalty = np.float32(sampling.repetition_penalty)
        row[seen] = np.where(logits > 0, logits / penalty, logits * penalty)
    if sampling.frequency_penalty or sampling.presence_penalty:
        tokens, counts = np.unique(np.array(draw.generated, dtype=np.intp), return_counts=True)
        row[tokens] -= (counts * sampling.frequency_penalty + sampling.presence_penalty).astype(np.float32)
    for token, bias in sampling.logit_bias:
        row[token] += np.float32(bias)
    row[[token for token in draw.banned if 0 <= token < len(row)]] = -np.inf
    return row


def _forbid(logits: Logits, mask: Mask) -> None:
    """Make what the mask does not allow impossible, in place."""
    logits += _ADDED.take(mask.view(np.uint8), axis=0).reshape(-1)[: len(logits)]


def _draw(logits: Logits, peak: float, draw: Draw) -> int:
    """Draw by inverting the cumulative distribution of what the filters leave."""
    if _is_unfiltered(draw.sampling):
        # The same path as many rows at once take, so that asking for more never changes the token.
        return _draw_free(logits[None], [0], [draw], {})[0].token
    ids, weights = _filtered(logits, peak, draw.sampling)
    return int(ids[pick(weights, uniform(draw.seed, draw.position))])


def _filtered(logits: Logits, peak: float, sampling: Sampling) -> tuple[Ids, Logits]:
    """The ids that the filters leave, and their probabilities but for a common factor: the greatest is 1.

    Each filter keeps the best tokens down to some rank, so what all leave is the shortest of their prefixes.
    """
    scaled = _scaled(logits, peak, sampling.temperature)
    if 0 < sampling.top_k < len(logits):
        ids = top_ids(scaled, sampling.top_k)
        weights = np.exp(scaled[ids])
        if sampling.top_p < 1.0:
            reached = np.cumsum(weights, dtype=np.float64)
            ids = ids[: prefix_reaching(reached, sampling.top_p * float(reached[-1]))]
            weights = weights[: len(ids)]
    else:
        weights = np.exp(scaled)
        ids = nucleus(scaled, weights, sampling.top_p) if sampling.top_p < 1.0 else np.arange(len(logits))
        weights = weights[ids]
    kept = weights >= sampling.min_p
    return ids[kept], weights[kept]


def _logprob(row: Logits, token: int, alternatives: int) -> TokenLogprob:
    """The entries of `token` and of the best `alternatives` in the log-softmax of logits [vocab]."""
    peak = row.max()
    log_sum = float(peak) + math.log(np.exp(row - peak).sum(dtype=np.float64))
    best = top_ids(row, min(alternatives, len(row))) if alternatives else ()
    top = tuple((int(other), float(row[other]) - log_sum) for other in best)
    return TokenLogprob(token, float(row[token]) - log_sum, top)
