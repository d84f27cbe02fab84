"""Vectors by the scheduler and the CPU's decoders: right by float64, and the same bits in any company."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tokenspeed.backend.executor import Executor
from tokenspeed.core.plan import Capacity
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.core.request import Pooled, Pooling, Request, Sampling, Vector
from tokenspeed.core.scheduler import Scheduler
from tokenspeed.model.batch import Batch, Decoder
from tokenspeed.model.cpu.decoder import CpuDecoder
from tokenspeed.model.torch_decoder import TorchDecoder

BLOCK_SIZE = 16
BLOCKS = 24
PROMPTS = [
    tuple(np.random.default_rng(length).integers(0, 61, length).tolist())
    for length in (1, 2, 15, 16, 17, 40, 90, 150)
]
POOLINGS: list[Pooling] = ["last", "mean"]
Pool = Callable[..., dict[str, Vector]]


def compiled(tiny: Any, dtype: Any = "float32") -> CpuDecoder:
    return CpuDecoder(tiny.spec, tiny.weights, dtype=dtype, block_size=BLOCK_SIZE, threads=2)


def plain(tiny: Any) -> TorchDecoder:
    return TorchDecoder(tiny.spec, tiny.weights, block_size=BLOCK_SIZE)


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Run requests to their end on a decoder of their own: the vector of each that has one."""
    decoders: list[Decoder] = []

    def run(
        decoder: Decoder, requests: Sequence[Request], *, blocks: int = BLOCKS, **options: Any
    ) -> dict[str, Vector]:
        decoders.append(decoder)
        decoder.allocate(blocks)
        executor = Executor(decoder, block_size=BLOCK_SIZE, vocab_size=61)
        capacity = Capacity(blocks, BLOCK_SIZE, 200)
        scheduler = Scheduler(capacity, SchedulerOptions(**({"target_step_ms": 0.0} | options)))
        for request in requests:
            scheduler.submit(request, 0.0)
        found = {}
        while (plan := scheduler.plan(0.0)) is not None:
            for sequence, event in scheduler.apply(plan, executor.execute(plan)):
                if isinstance(event, Pooled):
                    found[sequence.request.id] = event.vector
            scheduler.check()
        return found

    yield run
    for decoder in decoders:
        decoder.close()


def asking(prompt: Sequence[int], pooling: Pooling | None, name: str, answer: int = 0) -> Request:
    return Request(name, tuple(prompt), answer, Sampling(temperature=0.0), pooling=pooling)


def exact(tiny: Any, prompt: Sequence[int], pooling: Pooling) -> Vector:
    """By the plain decoder in float64, all of the prompt in one step."""
    decoder = TorchDecoder(tiny.spec, tiny.weights, block_size=BLOCK_SIZE, dtype=torch.float64)
    blocks, everywhere = -(-len(prompt) // BLOCK_SIZE), np.arange(len(prompt), dtype=np.int32)
    decoder.allocate(blocks)
    batch = Batch(
        tokens=np.array(prompt, np.int32),
        positions=everywhere,
        slots=everywhere,
        row_starts=np.array([0, len(prompt)], np.int32),
        contexts=np.array([len(prompt)], np.int32),
        block_tables=np.arange(blocks, dtype=np.int32)[None],
        logit_rows=everywhere[:0],
    )
    states = decoder.forward_states(batch, everywhere)[1].double().numpy()
    return states.mean(axis=0) if pooling == "mean" else states[-1]  # type: ignore[no-any-return]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("make", [compiled, plain])
def test_a_vector_is_that_of_a_plain_decoder_in_float64(
    tiny: Any, pool: Pool, make: Callable[[Any], Decoder], pooling: Pooling
) -> None:
    requests = [asking(prompt, pooling, str(number)) for number, prompt in enumerate(PROMPTS)]
    found = pool(make(tiny), requests, step_tokens=32)
    for number, prompt in enumerate(PROMPTS):
        np.testing.assert_allclose(found[str(number)], exact(tiny, prompt, pooling), atol=2e-5)


def test_in_bfloat16_a_vector_still_points_the_same_way(tiny: Any, pool: Pool) -> None:
    prompt = PROMPTS[-1]
    found = pool(compiled(tiny, "bfloat16"), [asking(prompt, "mean", "a")])["a"]
    wanted = exact(tiny, prompt, "mean")
    assert found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted) > 0.995


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_vector_is_the_same_bits_alone_and_in_any_company_and_chunks(
    tiny: Any, pool: Pool, pooling: Pooling
) -> None:
    requests = [asking(prompt, pooling, str(number)) for number, prompt in enumerate(PROMPTS)]
    alone = {request.id: pool(compiled(tiny), [request])[request.id] for request in requests}
    # Beside answers, in small steps, with too few blocks for all, and behind prefixes that others computed.
    talks = [asking(prompt, None, f"talk {number}", 30) for number, prompt in enumerate(PROMPTS[::2])]
    for blocks, step_tokens in ((BLOCKS, 16), (11, 16), (BLOCKS, 37), (64, 600)):
        mixed = pool(compiled(tiny), [*talks, *requests], blocks=blocks, step_tokens=step_tokens)
        assert mixed.keys() == alone.keys()
        for name, vector in alone.items():
            assert np.array_equal(mixed[name].astype(np.float32), vector.astype(np.float32))
