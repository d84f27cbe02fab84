"""From draws to what the sampling operations read, and from what they wrote back to tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpu.table import Ops
from tokenspeed.core.plan import Draw
from tokenspeed.core.request import Sampling, TokenLogprob
from tokenspeed.model.sampler import NOT_FINITE, NOTHING_ALLOWED, Sampled

ERRORS = {1: NOT_FINITE, 2: NOTHING_ALLOWED}  # by the status that `sample` writes
RANKED_AT_ONCE = 32  # rows of logits whose log-probabilities are computed together: bounds what that takes
_SIGN = 1 << 63
_GREEDY = Draw(Sampling(temperature=0.0), seed=0, position=0)


class DrawParameters:
    """Writes what each logit's draw needs into the arrays of a step.

    Most steps draw for the same rows as the one before, whose parameters are kept.
    """

    def __init__(self) -> None:
        self._samplings: tuple[Sampling, ...] = ()
        self._seeds: tuple[int, ...] = ()
        self._kept: dict[str, NDArray[Any]] = {}  # of some row above temperature 0
        self._untouched = True
        self.plain = True  # the last step's draws are from the logits as they are, and ask for nothing else

    def fill(self, arrays: dict[str, NDArray[Any]], draws: Sequence[Draw | None]) -> None:
        """For one draw a logit; None draws greedily, for nothing, and so do logits beyond those."""
        count = len(draws)
        some = draws if all(draws) else [_GREEDY if draw is None else draw for draw in draws]
        samplings, seeds, positions, _, _, banned, held = zip(*some, strict=True) if count else ((),) * 7
        if samplings != self._samplings or seeds != self._seeds:
            self._remember(samplings, seeds)
        self.plain = self._untouched and not any(banned) and not any(held)
        arrays["temperature"][count:] = 0.0
        if not self._kept:
            arrays["temperature"][:count] = 0.0  # the greatest logit needs nothing else
            return
        for name, values in self._kept.items():
            arrays[name][:count] = values
        arrays["draw_positions"][:count] = positions

    def _remember(self, samplings: tuple[Sampling, ...], seeds: tuple[int, ...]) -> None:
        self._samplings, self._seeds = samplings, seeds
        self._untouched = not any(
            sampling.logprobs is not None or sampling.logit_bias or sampling.penalised
            for sampling in samplings
        )
        self._kept = {}
        if any(sampling.temperature != 0.0 for sampling in samplings):
            self._kept = {
                "temperature": np.array([sampling.temperature for sampling in samplings], np.float32),
                "top_k": np.array([min(sampling.top_k, 2**31 - 1) for sampling in samplings], np.int32),
                "top_p": np.array([sampling.top_p for sampling in samplings], np.float32),
                "min_p": np.array([sampling.min_p for sampling in samplings], np.float32),
                "seeds": np.array([(seed + _SIGN) % (2 * _SIGN) - _SIGN for seed in seeds], np.int64),
            }


class Adjustments(NamedTuple):
    """What `adjust_logits` is told of the logits; on the host."""

    starts: NDArray[np.int32]
    tokens: NDArray[np.int32]
    counts: NDArray[np.int32]
    biases: NDArray[np.float32]
    repetition: NDArray[np.float32]
    frequency: NDArray[np.float32]
    presence: NDArray[np.float32]


def is_adjusted(draw: Draw) -> bool:
    """Whether the logits are changed before the draw."""
    sampling = draw.sampling
    return bool(sampling.logit_bias or draw.banned or sampling.penalised or draw.held is not None)


def adjustments_of(draws: Sequence[Draw | None]) -> Adjustments | None:
    """The entries of all draws, or None where no logit changes."""
    if not any(draw is not None and is_adjusted(draw) for draw in draws):
        return None
    starts = [0]
    tokens: list[int] = []
    counts: list[int] = []
    biases: list[float] = []
    penalties: list[tuple[float, float, float]] = []
    for draw in draws:
        entries = {} if draw is None else _entries(draw)
        tokens += entries
        counts += [count for count, _ in entries.values()]
        biases += [bias for _, bias in entries.values()]
        starts.append(len(tokens))
        sampling = (_GREEDY if draw is None else draw).sampling
        penalties.append((sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty))
    repetition, frequency, presence = np.array(penalties, np.float32).T.copy()
    return Adjustments(
        np.array(starts, np.int32),
        np.array(tokens, np.int32),
        np.array(counts, np.int32),
        np.array(biases, np.float32),
        repetition,
        frequency,
        presence,
    )


def _entries(draw: Draw) -> dict[int, tuple[int, float]]:
    """By token: -1, or how often it was generated where prompt or answer have it; and its bias."""
    seen: dict[int, int] = dict.fromkeys(draw.prompt, 0)
    for token in draw.generated:
        seen[token] = seen.get(token, 0) + 1
    entries = {token: (count, 0.0) for token, count in seen.items()}
    for token, bias in draw.sampling.logit_bias:
        count, before = entries.get(token, (-1, 0.0))
        entries[token] = (count, before + bias)
    for token in draw.banned:
        count, _ = entries.get(token, (-1, 0.0))
        entries[token] = (count, -math.inf)
    return entries


def adjust(ops: Ops, logits: Tensor, given: Adjustments, masks: Tensor | None = None) -> None:
    """Enqueue the change of the logits; what `masks` (int32 [logits, words], on the host and left alone until
    the device has come so far) do not allow becomes impossible."""
    starts, tokens, counts, biases, repetition, frequency, presence = (
        to_device(array, logits.device) for array in given
    )
    mask = None if masks is None else masks.to(logits.device, non_blocking=True)
    kept = torch.empty(len(given.tokens), dtype=torch.float32, device=logits.device)
    ops.adjust_logits(logits, starts, tokens, counts, biases, repetition, frequency, presence, mask, kept)


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy of the array, enqueued through pinned memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.clone()


def to_host(tensor: Tensor) -> Tensor:
    """A copy that is there once the device has come so far."""
    if not tensor.is_cuda:
        return tensor.clone()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    return host


class Ranked(NamedTuple):
    """Log-probabilities on their way to the host: of given tokens, and of the best ones."""

    tokens: Tensor  # int64 [rows]
    logprobs: Tensor  # float32 [rows]; NaN where the logits were not finite
    best: Tensor  # int64 [rows, alternatives]
    best_logprobs: Tensor  # float32 [rows, alternatives]

    def read(self, row: int, alternatives: int) -> TokenLogprob | None:
        """What row `row` says, once it is there; None where its logits were not finite."""
        logprob = float(self.logprobs[row])
        if not math.isfinite(logprob) and logprob != -math.inf:
            return None
        count = min(alternatives, self.best.shape[1])
        top = zip(self.best[row, :count].tolist(), self.best_logprobs[row, :count].tolist(), strict=True)
        return TokenLogprob(int(self.tokens[row]), logprob, tuple(top))


class Raw:
    """Rows of logits as the model gave them, kept for their log-probabilities before they are changed."""

    def __init__(self, logits: Tensor, rows: Sequence[int], alternatives: int) -> None:
        """Enqueues copies of `rows`, at most `RANKED_AT_ONCE`, of logits [logits, vocab]."""
        self._index = to_device(np.array(rows, np.int64), logits.device)
        kept = logits[self._index]  # [rows, vocab]
        self._sums = torch.logsumexp(kept, dim=1, keepdim=True)
        # A NaN or an infinity anywhere makes the sum one; all are -inf: nothing can be told either.
        self._sums.masked_fill_(~self._sums.isfinite(), math.nan)
        self._best, self._best_ids = torch.topk(kept, min(alternatives, kept.shape[1]), dim=1)
        self._kept = kept

    def ranked(self, tokens: Tensor) -> Ranked:
        """Enqueue what is said of `tokens` [logits], one for each of the logits."""
        chosen = tokens[self._index].long()
        logprobs = self._kept.gather(1, chosen[:, None]) - self._sums
        return Ranked(
            to_host(chosen),
            to_host(logprobs[:, 0]),
            to_host(self._best_ids),
            to_host(self._best - self._sums),
        )


def sampled_of(token: int, status: int, logprob: TokenLogprob | None) -> Sampled:
    """One logit's outcome."""
    if status:
        return Sampled(0, error=ERRORS[status])
    return Sampled(token, logprob)
