"""Drafts change no draw: each token of a row that carries them is distributed as the model says."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tokenspeed.backend.executor import Executor
from tokenspeed.core.plan import Row, StepPlan
from tokenspeed.core.request import Sampling

PROMPT = (3, 17, 42, 5, 8)
SEEDS, ROWS = 4096, 32  # draws, so many in a step
LEAST = 5.0  # draws that a token must be expected to have, to be told from the others
# Beyond it lies one in a million of the chi-square distribution, by Wilson and Hilferty's approximation.
FAR = 4.75

SETTINGS = {
    "temperature 1": Sampling(),
    "temperature 0.6": Sampling(temperature=0.6),
    "temperature 1.5": Sampling(temperature=1.5),
    "top_k": Sampling(top_k=6),
    "top_p": Sampling(top_p=0.7),
    "min_p": Sampling(min_p=0.1),
    "all filters": Sampling(temperature=0.9, top_k=20, top_p=0.9, min_p=0.02),
    "penalties": Sampling(presence_penalty=0.8, frequency_penalty=0.4, repetition_penalty=1.3),
    "bias": Sampling(logit_bias=((4, 2.0), (9, -3.0))),
}


def probabilities(logits: torch.Tensor, sampling: Sampling, prompt: Any, generated: Any) -> Any:
    """Of each token, in float64, straight from the definitions."""
    row = logits.double().numpy().copy()
    for token in {*prompt, *generated}:
        row[token] *= sampling.repetition_penalty ** (-1.0 if row[token] > 0 else 1.0)
    for token in generated:
        row[token] -= sampling.frequency_penalty
    for token in set(generated):
        row[token] -= sampling.presence_penalty
    for token, bias in sampling.logit_bias:
        row[token] += bias
    weights = np.exp((row - row.max()) / sampling.temperature)
    best = np.argsort(-weights, kind="stable")
    kept = best[: sampling.top_k or len(best)]
    shares = np.cumsum(weights[kept]) / weights[kept].sum()
    kept = kept[: int(np.searchsorted(shares, sampling.top_p)) + 1]
    kept = kept[weights[kept] >= sampling.min_p * weights.max()]
    found = np.zeros_like(weights)
    found[kept] = weights[kept] / weights[kept].sum()
    return found


def deviation(counts: Any, expected: Any) -> float:
    """How many standard deviations the chi-square statistic is off; tokens seldom expected count as one."""
    often = expected * counts.sum() >= LEAST
    seen = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum()) * counts.sum()
    assert not seen[wanted == 0].any(), "a token was drawn that cannot be"
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    statistic, freedom = float(((seen - wanted) ** 2 / wanted).sum()), len(seen) - 1
    if freedom == 0:
        return 0.0
    spread = 2.0 / (9.0 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1.0 - spread)) / math.sqrt(spread)


@pytest.mark.parametrize("setting", SETTINGS)
def test_drafts_leave_the_distribution_of_every_token_as_it_is(tiny: Any, setting: str) -> None:
    """The first draft is the likeliest token, so that it holds often; the second one's token is then seen."""
    sampling = SETTINGS[setting]
    decoder = tiny.decoder()
    decoder.allocate(tiny.blocks)
    executor = Executor(decoder, block_size=tiny.block_size, vocab_size=tiny.vocab)
    first = probabilities(tiny.logits(PROMPT)[-1], sampling, PROMPT, ())
    draft = int(first.argmax())
    second = probabilities(tiny.logits((*PROMPT, draft))[-1], sampling, PROMPT, (draft,))
    counts, after = np.zeros(tiny.vocab), np.zeros(tiny.vocab)
    for start in range(0, SEEDS, ROWS):
        rows = tuple(
            Row(place, 0, PROMPT, (2 * place, 2 * place + 1), draw, (draft, 1))
            for place in range(ROWS)
            for draw in [tiny.draw(replace(sampling, seed=start + place), PROMPT, PROMPT)]
        )
        for result in executor.execute(StepPlan(0, rows)).rows:
            counts[result.tokens[0]] += 1
            if len(result.tokens) > 1:
                after[result.tokens[1]] += 1
    assert after.sum() > 100
    assert deviation(counts, first) < FAR
    assert deviation(after, second) < FAR
