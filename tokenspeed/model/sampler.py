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
from tokenspeed.model.randomness import MASK, uniform
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
TRIES = 4  # that a held draw has: nearly as cheap as one, and each may make a mask unnecessary
FAULTS = {drawing.NOT_FINITE: NOT_FINITE, drawing.NOTHING_LEFT: NOTHING_ALLOWED}


class Sampled(NamedTuple):
    """One row's token, with its log-probability where asked; or why there is none.

    `others`: what further draws gave, where the row is held and may yet refuse the token.
    """

    token: int
    logprob: TokenLogprob | None = None
    error: str | None = None
    others: Sequence[int] = ()


def sample(
    logits: Tensor, draws: Sequence[Draw], masks: Mapping[int, Mask] = MappingProxyType({})
) -> list[Sampled]:
    """One token for each row of `logits` (float32 [rows, vocab]), drawn as its `Draw` says.

    A draw depends on its own row, `sampling`, `seed` and `position` alone. Equal logits rank by id, lowest
    first. `masks`, by number of the draw, say what may be drawn: bit i % 32 of word i // 32 allows token i;
    the logits of masked rows may be changed. A row with a NaN, an infinity above or no finite logit is an
    error of that row.
    """
    sampled = sample_some(logits, dict(enumerate(draws)), masks)
    return [sampled[number] for number in range(len(draws))]


def sample_some(
    logits: Tensor, draws: Mapping[int, Draw], masks: Mapping[int, Mask], *, again: int = 0
) -> dict[int, Sampled]:
    """As `sample`, for rows with these numbers, which draw for the `again`th time."""
    rows: Logits = logits.cpu().numpy()
    plain = [number for number, draw in draws.items() if _is_plain(draw)]
    free = {number: draw for number, draw in draws.items() if _is_free(draw)}
    others = draws.keys() - {*plain, *free}
    sampled: dict[int, Sampled] = {
        number: _sample_row(rows[number], draws[number], masks.get(number), again) for number in others
    }
    # Most rows need no more than this, and all of them at once.
    cut = [number for number in plain if number in masks and math.isfinite(rows[number].max())]
    for number in cut:
        _forbid(rows[number], masks[number])
    for numbers in _in_parts(plain, rows.shape[1]):
        sampled |= zip(numbers, _greedy(_rows(rows, numbers)), strict=True)
    sampled |= {number: Sampled(0, error=NOTHING_ALLOWED) for number in cut if sampled[number].error}
    if free:
        sampled |= zip(free, _draw_free(rows, free, masks, again), strict=True)
    return sampled


def instead(logits: Tensor, number: int, draw: Draw, token: int) -> Sampled:
    """A token in the place of the one drawn from a row of logits [rows, vocab], with what was asked of it."""
    wanted = draw.sampling.logprobs
    if wanted is None:
        return Sampled(token)
    return Sampled(token, _logprob(logits[number].numpy(force=True), token, wanted))


def score(logits: Tensor, targets: Sequence[int], alternatives: int) -> list[TokenLogprob | None]:
    """The log-probability of `targets[r]` under row r of `logits` (float32 [rows, vocab]), with the best
    `alternatives`; None where the logits were not finite."""
    rows: Logits = logits.cpu().numpy()
    return [
        _logprob(row, target, alternatives) if math.isfinite(row.max()) else None
        for row, target in zip(rows, targets, strict=True)
    ]


def is_unfiltered(sampling: Sampling) -> bool:
    """Whether any token may be drawn, however many are likelier."""
    return sampling.top_k == 0 and sampling.top_p >= 1.0 and sampling.min_p <= 0.0


def _is_untouched(draw: Draw) -> bool:
    """Whether the logits are drawn from as they came, and nothing is asked but the token."""
    sampling = draw.sampling
    return not (sampling.logprobs is not None or sampling.logit_bias or draw.banned or sampling.penalised)


def _is_plain(draw: Draw) -> bool:
    """Whether the greatest logit is all that is asked for."""
    return draw.sampling.temperature == 0.0 and _is_untouched(draw)


def _is_free(draw: Draw) -> bool:
    """Whether the draw is from the whole vocabulary, by temperature alone."""
    return draw.sampling.temperature > 0.0 and is_unfiltered(draw.sampling) and _is_untouched(draw)


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
    rows: Logits, draws: Mapping[int, Draw], masks: Mapping[int, Mask], again: int
) -> list[Sampled]:
    """A token of the whole vocabulary, or of what its mask allows, for each row that has a draw."""
    temperatures = [min(max(draw.sampling.temperature, COLDEST), HOTTEST) for draw in draws.values()]
    may_refuse = [draw.held is not None and number not in masks for number, draw in draws.items()]
    tokens = drawing.draw_rows(
        rows,
        np.array([*draws]),
        np.array([masks[number].ctypes.data if number in masks else 0 for number in draws]),
        (1.0 / np.array(temperatures)).astype(np.float32),
        np.array([draw.seed & MASK for draw in draws.values()], np.uint64),
        np.array([draw.position & MASK for draw in draws.values()], np.uint64),
        again=again,
        tries=TRIES if any(may_refuse) else 1,
    )
    return [
        Sampled(first, others=others if more else ()) if first >= 0 else Sampled(0, error=FAULTS[first])
        for (first, *others), more in zip(tokens.tolist(), may_refuse, strict=True)
    ]


def _scaled(logits: Logits, peak: float, temperature: float) -> Logits:
    """(logits - peak) / temperature: log-probabilities but for a common term; the greatest is 0."""
    scaled: Logits = logits - np.float32(peak)
    with np.errstate(over="ignore"):  # a tiny temperature makes all but the greatest -inf, as it should
        scaled /= np.float32(max(temperature, COLDEST))
    return scaled


def _sample_row(row: Logits, draw: Draw, mask: Mask | None, again: int) -> Sampled:
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
    if sampling.temperature == 0.0:
        sampled = Sampled(int(adjusted.argmax()))
    elif is_unfiltered(sampling):
        # The same path as many rows at once take, so that asking for more never changes the token.
        [sampled] = _draw_free(adjusted[None], {0: draw}, {} if mask is None else {0: mask}, again)
    else:
        ids, weights = _filtered(adjusted, peak, sampling)
        sampled = Sampled(int(ids[pick(weights, uniform(draw.seed, draw.position, again))]))
    wanted = sampling.logprobs
    return sampled if wanted is None else sampled._replace(logprob=_logprob(row, sampled.token, wanted))


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
