"""What the metrics say of constructed cases, whose figures are known."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tokenspeed.engine.families import Histogram
from tokenspeed.errors import RequestError
from tokenspeed.sim.backend import EVEN
from tokenspeed.sim.clock import run

# Steps of 64 tokens, prompts in the order of arrival: who runs instead of whom is known beforehand.
IN_ORDER = {"policy": "first-come", "target_step_ms": 0.0, "step_tokens": 64, "run_ahead": 0}
CHUNK = EVEN.prefill(0, 64)  # seconds
DECODE = EVEN.base + EVEN.decode(1)  # seconds, of a step with one row


def test_seconds_blocked_are_the_others_prefill_by_the_length_and_priority_of_who_waited(watched):
    async def main() -> None:
        async with watched(**IN_ORDER) as server:
            long = server.send("long", range(640))
            await server.run(long, server.send("short", range(900, 930), priority=2))
            name = "prefill_blocked_seconds_total"
            assert server.figure(name, prompt_tokens="512", priority="2") == pytest.approx(10 * CHUNK)
            assert server.figure(name, prompt_tokens="2048", priority="0") == 0.0
            every = 10 * CHUNK + EVEN.prefill(0, 30)
            assert server.figure("prefill_seconds_total") == pytest.approx(every)

    run(main())


def test_who_leaves_before_its_first_token_was_blocked_until_then(watched):
    async def main() -> None:
        async with watched(**IN_ORDER) as server:
            long, short = server.send("long", range(640)), server.send("short", range(900, 930))
            await asyncio.sleep(3.5 * (EVEN.base + CHUNK))
            short.cancel()
            assert server.figure("prefill_blocked_seconds_total") == pytest.approx(3 * CHUNK)
            assert server.figure("time_to_first_token_seconds_count") == 0
            await server.run(long)

    run(main())


def test_seconds_that_decodes_are_blocked_count_for_each_row_beside_the_prefill(watched):
    async def main() -> None:
        async with watched(**IN_ORDER) as server:
            streams = [server.send(f"r{i}", [i], 40) for i in range(3)]
            await asyncio.sleep(0.1)
            assert server.figure("decode_blocked_seconds_total") == 0.0
            await server.run(server.send("long", range(100, 222)))  # twice the 61 tokens beside three rows
            blocked = server.figure("decode_blocked_seconds_total")
            assert blocked == pytest.approx(2 * 3 * EVEN.prefill(0, 61))
            await server.run(*streams)

    run(main())


def test_steps_are_told_apart_by_what_their_rows_do(watched):
    async def main() -> None:
        async with watched(**IN_ORDER) as server:
            stream = server.send("decoding", range(128), 9)
            await anext(stream)
            await server.run(server.send("prefilling", range(900, 963), 1), stream)
            counts = {
                kind: server.figure("steps_total", kind=kind) for kind in ("prefill", "mixed", "decode")
            }
            assert counts == {"prefill": 2, "mixed": 1, "decode": 7}
            for kind, count in counts.items():
                assert server.figure("step_duration_seconds_count", kind=kind) == count
            assert server.figure("computed_tokens_total") == 128 + 63 + 8

    run(main())


def test_first_tokens_queues_and_gaps_are_observed_by_class(watched):
    async def main() -> None:
        async with watched(max_running=1, **IN_ORDER) as server:
            await server.run(server.send("a", [1], 5), server.send("b", [2], 1, priority=-3))
            first, then = {"priority": "0"}, {"priority": "-3"}
            assert server.figure("time_to_first_token_seconds_sum", **first) == pytest.approx(DECODE)
            assert server.figure("queue_time_seconds_sum", **first) == 0.0
            assert server.figure("inter_token_latency_seconds_count", **first) == 4
            assert server.figure("inter_token_latency_seconds_sum", **first) == pytest.approx(4 * DECODE)
            assert server.figure("queue_time_seconds_sum", **then) == pytest.approx(5 * DECODE)
            assert server.figure("time_to_first_token_seconds_sum", **then) == pytest.approx(6 * DECODE)
            assert server.figure("inter_token_latency_seconds_count", **then) == 0
            assert server.figure("generated_tokens_total") == 6

    run(main())


@pytest.mark.parametrize(
    ("length", "bucket"), [(1, "512"), (512, "512"), (513, "2048"), (32768, "32768"), (32769, "inf")]
)
def test_a_prompt_is_in_the_class_of_the_next_length(watched, length, bucket):
    async def main() -> None:
        async with watched(blocks=9000) as server:
            await server.run(server.send("a", [7] * length))
            assert server.figure("time_to_first_token_seconds_count", prompt_tokens=bucket) == 1

    run(main())


def test_priorities_beyond_ten_make_no_more_classes(watched):
    async def main() -> None:
        async with watched() as server:
            await server.run(*(server.send(f"r{i}", [i], priority=i - 20) for i in range(40)))
            label = "prefill_blocked_seconds_total"
            classes = [
                s.labels["priority"] for m in server.metrics.collect() for s in m.samples if label in s.name
            ]
            assert sorted(map(int, classes)) == list(range(-10, 11))

    run(main())


def test_the_longest_wait_is_by_now_and_nothing_when_nobody_waits(watched):
    async def main() -> None:
        async with watched(**IN_ORDER) as server:
            assert server.figure("longest_wait_seconds") == 0.0
            stream = server.send("long", range(640))
            await asyncio.sleep(0.1)
            assert server.figure("longest_wait_seconds") == pytest.approx(0.1)
            await server.run(stream)
            assert server.figure("longest_wait_seconds") == 0.0

    run(main())


def test_a_first_token_that_comes_as_foretold_has_the_ratio_one(watched):
    async def main() -> None:
        async with watched() as server:
            await server.run(server.send("a", range(60)))
            assert server.figure("time_to_first_token_over_predicted_ratio_sum") == pytest.approx(
                1.0, rel=0.01
            )

    run(main())


def test_a_prefill_that_makes_way_for_a_short_prompt_yields(watched):
    async def main() -> None:
        async with watched(target_step_ms=40.0) as server:
            long = server.send("long", range(4000))
            await asyncio.sleep(1.0)
            assert server.figure("prefill_yields_total") == 0
            await server.run(server.send("short", range(900, 930)))
            assert server.figure("prefill_yields_total") > 0
            long.cancel()

    run(main())


def test_the_learned_costs_are_shown(watched):
    async def main() -> None:
        async with watched() as server:
            await server.run(*(server.send(f"r{i}", range(40 * i, 41 * i + 9), 5) for i in range(9)))
            for part in ("base", "row", "token"):
                assert server.figure("step_cost_seconds", of=part) == pytest.approx(
                    getattr(EVEN, part), rel=0.01
                )
            assert 0.0 < server.figure("step_prediction_error_ratio") < 0.5

    run(main())


def test_a_failed_step_is_counted_and_so_is_how_its_choices_ended(watched):
    async def main() -> None:
        async with watched(fails=lambda plan: plan.number == 1) as server:
            await server.run(server.send("a", range(9), n=2))
            await server.run(server.send("b", range(9)))
            assert server.figure("steps_failed_total") == 1
            assert server.figure("choices_finished_total", reason="error") == 2
            assert server.figure("choices_finished_total", reason="length") == 1
            assert server.figure("requests_total") == 2

    run(main())


def test_who_is_refused_is_counted_by_the_code_it_got(watched):
    async def main() -> None:
        async with watched(max_running=1, max_waiting=0) as server:
            taken = server.send("a", range(9), 4)
            for name, fields in (("b", {}), ("c", {}), ("d", {"max_tokens": 1 << 17})):
                with pytest.raises(RequestError):
                    server.send(name, range(9), **fields)
            await server.run(taken)
            assert server.figure("requests_refused_total", code="overloaded") == 2
            assert server.figure("requests_refused_total", code="context_length_exceeded") == 1
            assert server.figure("requests_total") == 1

    run(main())


def test_every_figure_has_its_words_and_a_name_as_prometheus_wants(watched):
    async def main() -> str:
        async with watched() as server:
            await server.run(server.send("a", range(9), 4))
            registry = CollectorRegistry()
            registry.register(server.metrics)
            return generate_latest(registry).decode()

    families = list(text_string_to_metric_families(run(main())))
    assert len(families) > 20
    for family in families:
        assert family.name.startswith("tokenspeed_")
        assert family.documentation
        assert family.samples, family.name
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total"), sample.name


def test_buckets_count_what_is_at_most_their_end_and_all_below():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert histogram.buckets() == [("1.0", 2.0), ("2.0", 3.0), ("+Inf", 4.0)]
    assert (histogram.count, histogram.sum) == (4, 12.0)
