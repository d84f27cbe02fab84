"""A whole server on a GPU: the built-in model says what it says on the CPU, whatever runs beside it."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from tokenspeed import builtin, config
from tokenspeed.backend.cuda import CudaBackend
from tokenspeed.backend.graphs import Graphs
from tokenspeed.backend.stepper import Begun, Stepper
from tokenspeed.build import Server, build
from tokenspeed.core.plan import Draw, Row, StepPlan
from tokenspeed.core.request import Finished, FinishReason, Pooling, Request, Sampling, TokenDelta
from tokenspeed.generation.embedding import EmbeddingRequest
from tokenspeed.generation.outputs import Whole
from tokenspeed.generation.request import GenerationRequest, SamplingFields, TextPrompt
from tokenspeed.text.formats import JsonSchema
from tokenspeed.text.tokenizer import Tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PROMPTS, NEW = 100, 64


def built(*overrides: str) -> Server:
    return build(
        config.load(None, overrides), stage=lambda name: lambda done, total: None, say=lambda line: None
    )


def prompts() -> list[tuple[int, ...]]:
    """Beginnings of Python code, of many lengths."""
    names = ["add", "parse", "read_file", "count", "merge", "sort_by", "to_json", "find", "split", "load"]
    texts = [
        f"def {name}_{kind}({', '.join('abcdef'[: 1 + n % 4])}):\n    " + "x = 1\n    " * (n % 7)
        for n, (name, kind) in enumerate((name, kind) for name in names for kind in range(PROMPTS // 10))
    ]
    tokenizer = Tokenizer.load(builtin.MODEL)
    return [tuple(tokenizer.encode(text, add_special=True, param="prompt")) for text in texts]


async def ids_of(server: Server, wanted: Sequence[Request]) -> list[list[int]]:
    async def one(request: Request) -> list[int]:
        found: list[int] = []
        async for events in server.engine.submit(request):
            for event in events:
                if isinstance(event, TokenDelta):
                    found += event.tokens
                elif isinstance(event, Finished):
                    assert event.reason in (FinishReason.LENGTH, FinishReason.STOP), event
        return found

    return await asyncio.gather(*map(one, wanted))


async def served(server: Server, wanted: Sequence[Request]) -> list[list[int]]:
    server.engine.start()
    try:
        return await ids_of(server, wanted)
    finally:
        await server.engine.stop()


def greedy(prompts: Sequence[tuple[int, ...]], **sampling: object) -> list[Request]:
    return [
        Request(f"r{n}", prompt, NEW, Sampling(temperature=0.0, **sampling))  # type: ignore[arg-type]
        for n, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize(("dtype", "least", "near"), [("float16", 0.95, 0.02), ("bfloat16", 0.85, 0.1)])
async def test_greedy_ids_are_those_of_the_cpu_in_float32_but_for_near_ties(
    dtype: str, least: float, near: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """`near` nats between the two best tokens are nearer than the dtype tells apart."""
    asked = prompts()
    in_float32 = ("device.name=cpu", "model.dtype=float32", "cache.memory_mib=512")
    expected = await served(built(*in_float32), greedy(asked))
    gpu = built("device.name=cuda", "cache.memory_mib=512", f"model.dtype={dtype}")
    found = await served(gpu, greedy(asked))
    differing = [n for n in range(PROMPTS) if found[n] != expected[n]]
    with capsys.disabled():
        sys.stdout.write(f"\n{dtype}: {PROMPTS - len(differing)} of {PROMPTS} are equal\n")
    judge, gaps = built(*in_float32), []
    for n in differing:
        pairs = enumerate(zip(found[n], expected[n], strict=False))
        at = next(i for i, (ours, theirs) in pairs if ours != theirs)
        gaps.append(await gap(judge, (*asked[n], *expected[n][:at])))
    await judge.engine.stop()
    assert max(gaps, default=0.0) < near
    assert len(differing) <= (1 - least) * PROMPTS


async def gap(server: Server, prompt: tuple[int, ...]) -> float:
    """Between the log-probabilities of the two best tokens after a prompt."""
    if not server.engine.ready:
        server.engine.start()
    request = Request(str(random.random()), prompt, 1, Sampling(temperature=0.0, logprobs=2))
    async for events in server.engine.submit(request):
        for event in events:
            if isinstance(event, TokenDelta) and event.logprobs:
                best, second = event.logprobs[0].top
                return best[1] - second[1]
    raise AssertionError("no token came")


@pytest.mark.parametrize("few", ["cupy", "torch"])
async def test_every_kind_of_request_is_served_side_by_side(few: str) -> None:
    server = built("device.name=cuda", "cache.memory_mib=64", f"kernels.products={few}")
    asked = prompts()[:24]
    kinds = [
        Sampling(temperature=0.0),
        Sampling(seed=3),
        Sampling(temperature=0.7, top_k=20, top_p=0.9, seed=5),
        Sampling(temperature=0.9, min_p=0.05, seed=6),
        Sampling(temperature=0.0, presence_penalty=0.5, frequency_penalty=0.5, repetition_penalty=1.1),
        Sampling(temperature=0.0, logprobs=5, logit_bias=((20, 2.0),)),
    ]
    wanted = [
        Request(f"r{n}", prompt, NEW, kinds[n % len(kinds)], prompt_logprobs=3 if n % 5 == 0 else None)
        for n, prompt in enumerate(asked)
    ]
    server.engine.start()
    together = await ids_of(server, wanted)
    assert all(together)
    server.engine.scheduler.check()
    await server.engine.stop()


async def test_an_invalid_step_ends_its_requests_alone() -> None:
    server = built("device.name=cuda", "cache.memory_mib=64")
    beyond = Request("beyond", (1, 10**6), 4, Sampling(temperature=0.0))
    fine = Request("fine", (20, 21, 22), 4, Sampling(temperature=0.0))
    server.engine.start()
    stream = server.engine.submit(beyond)
    [ids] = await ids_of(server, [fine])
    assert len(ids) == 4
    events = [event async for batch in stream for event in batch]
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.ERROR
    await server.engine.stop()


DRAWN_AS = [
    Sampling(temperature=0.0),
    Sampling(seed=3),
    Sampling(temperature=0.7, top_k=20, top_p=0.9, seed=5),
    Sampling(temperature=0.9, min_p=0.05, seed=6),
    Sampling(temperature=1.5, top_p=0.95, seed=2**64 - 1),
]


def stepper_of(server: Server) -> Stepper:
    backend = server.engine._backend
    assert isinstance(backend, CudaBackend)
    graphs = backend.stepper.passes.graphs
    assert graphs is not None
    graphs.wait()
    assert all(graphs.decode(rows, 10**6) is not None for rows in range(1, 17)), "not captured"
    return backend.stepper


def drawn(
    stepper: Stepper, samplings: Sequence[Sampling], steps: int, graphs: Graphs | None
) -> list[list[int]]:
    """By row, what a prompt and the steps that decode after it give, each begun behind the one that runs; the
    prompts kernel by kernel, the others by `graphs`."""
    prompts = [tuple(range(20 + n, 30 + 2 * n)) for n in range(len(samplings))]
    blocks = [tuple(range(16 * n, 16 * n + 16)) for n in range(len(samplings))]
    begun: list[Begun] = []
    results: list[list[int]] = [[] for _ in samplings]

    def end() -> None:
        first = begun.pop(0)
        first.ended.wait()
        for found, row in zip(results, stepper.end(first).rows, strict=True):
            assert row.error is None
            found += row.tokens

    for number in range(steps + 1):
        rows = [
            Row(n, start, prompt if number == 0 else (0,), table, draw, source=n if number else -1)
            for n, (prompt, table, sampling) in enumerate(zip(prompts, blocks, samplings, strict=True))
            for start in [len(prompt) + number - 1 if number else 0]
            for draw in [Draw(sampling, sampling.seed or 0, len(prompt) + number)]
        ]
        stepper.passes.graphs = graphs if number else None
        begun.append(stepper.begin(StepPlan(number, tuple(rows))))
        if len(begun) == 2:
            end()
    end()
    return results


@pytest.mark.parametrize("drafter", ["model", "ngram"])
async def test_drafts_hold_and_change_no_answer_but_near_ties(drafter: str) -> None:
    """One stream, then many; kernel by kernel first, then by graphs. Kernels for rows of several tokens add
    in another order, which may turn an answer where two tokens are nearly as likely."""
    wanted = [
        Request(f"r{n}", prompt, NEW, Sampling(temperature=0.8 * (n % 2), seed=n, top_p=0.95))
        for n, prompt in enumerate(prompts()[:24])
    ]
    found: list[list[list[int]]] = []
    for one in ("off", drafter):
        always = () if one == "off" else ("speculation.control=always",)
        server = built(
            "device.name=cuda",
            "model.dtype=float16",
            "cache.memory_mib=256",
            f"speculation.drafter={one}",
            *always,
        )
        server.engine.start()
        try:
            found.append(await ids_of(server, wanted[:1]) + await ids_of(server, wanted[1:]))
            for graphs in stepper_of(server).graphs:
                graphs.wait()
            again = [replace(request, id=f"again {request.id}") for request in wanted]
            found.append(await ids_of(server, again))
            counts = server.engine.scheduler.speculation.counts
            if one == drafter:
                assert counts.accepted[drafter] >= 0.25 * counts.drafted[drafter] > 0
                assert server.engine.scheduler.speculation.counts.failures == 0
        finally:
            await server.engine.stop()
    for other in found[1:]:
        assert sum(a == b for a, b in zip(found[0], other, strict=True)) >= 22


@pytest.mark.parametrize("rows", [1, 5, 8, 14])
async def test_a_captured_step_draws_what_one_launched_kernel_by_kernel_draws(rows: int) -> None:
    """With the same kernels: attention is the same one in both. 14 rows are captured as such."""
    server = built("device.name=cuda", "cache.memory_mib=64", "kernels.decode_attention=apart")
    stepper = stepper_of(server)
    samplings = [DRAWN_AS[(n + rows) % len(DRAWN_AS)] for n in range(rows)]
    captured = drawn(stepper, samplings, 60, stepper.passes.graphs)
    assert drawn(stepper, samplings, 60, None) == captured
    assert [len(row) for row in captured] == [61] * rows
    await server.engine.stop()


async def test_a_row_draws_alike_beside_rows_whose_logits_are_changed() -> None:
    """Those are drawn again behind the graph, which draws from the logits as they are."""
    server = built("device.name=cuda", "cache.memory_mib=64")
    stepper = stepper_of(server)
    biased = Sampling(temperature=0.0, logit_bias=((33, 1000.0),))
    asked = Sampling(temperature=0.0, logprobs=2)
    plain = Sampling(temperature=0.0)
    first = drawn(stepper, [*DRAWN_AS, biased, asked], 60, stepper.passes.graphs)
    second = drawn(stepper, [*DRAWN_AS, plain, plain], 60, stepper.passes.graphs)
    assert first[:5] == second[:5]
    assert first[5] == [33] * 61
    assert first[6] == second[6]
    await server.engine.stop()


async def test_a_draw_that_no_graph_holds_follows_it() -> None:
    """The plain draw takes too much memory to be captured."""
    found = []
    for sample in ("cupy", "reference"):
        server = built("device.name=cuda", "cache.memory_mib=64", f"kernels.sample={sample}")
        stepper = stepper_of(server)
        assert stepper.passes._captures_draw == (sample == "cupy")
        found.append(drawn(stepper, DRAWN_AS[:2], 60, stepper.passes.graphs))
        await server.engine.stop()
    assert found[0] == found[1]


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


async def answers(server: Server, wanted: Sequence[GenerationRequest]) -> list[Whole]:
    async def one(request: GenerationRequest) -> Whole:
        whole = Whole()
        async for outputs in await server.generator.start(request):
            for output in outputs:
                whole.add(output)
        return whole

    server.engine.start()
    try:
        return await asyncio.gather(*map(one, wanted))
    finally:
        await server.engine.stop()


@pytest.mark.parametrize("drafter", ["off", "ngram", "model"])
async def test_answers_that_a_schema_holds_fit_it_beside_free_ones(drafter: str) -> None:
    always = () if drafter == "off" else ("speculation.control=always",)
    server = built("device.name=cuda", "cache.memory_mib=256", f"speculation.drafter={drafter}", *always)
    wanted = [
        GenerationRequest(
            f"r{n}",
            (TextPrompt(f"def read_{n}():\n"),),
            SamplingFields(temperature=1.5 * (n % 3 > 0), seed=n),
            max_tokens=200,
            format=JsonSchema(SCHEMA) if n % 4 else None,
            logprobs=2 if n % 5 == 0 else None,
        )
        for n in range(96)
    ]
    held = [
        answer
        for request, answer in zip(wanted, await answers(server, wanted), strict=True)
        if request.format is not None
    ]
    assert all(answer.reason == "stop" for answer in held)
    for answer in held:
        person = json.loads(answer.text)
        assert person.keys() == {"name", "age", "tags"}
        assert len(person["name"]) <= 8
        assert 0 <= person["age"] <= 120
        assert set(person["tags"]) <= {"a", "b", "c"}
    assert server.engine.held_blocks == 0


@pytest.mark.parametrize("pooling", ["last", "mean"])
async def test_embeddings_are_those_of_the_cpu_in_float32(pooling: Pooling) -> None:
    texts = tuple(TextPrompt("def add(a, b):\n    return a + b\n" * (1 + 5 * n)) for n in range(12))
    found = []
    for where in (("device.name=cpu", "model.dtype=float32"), ("device.name=cuda", "model.dtype=float16")):
        server = built(*where, "cache.memory_mib=256")
        server.engine.start()
        try:
            found.append((await server.embedder.embed(EmbeddingRequest("e", texts, pooling))).vectors)
        finally:
            await server.engine.stop()
    for expected, vector in zip(*found, strict=True):
        assert float(np.dot(expected, vector)) > 0.999
