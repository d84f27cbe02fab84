"""What is asked, and when."""

from __future__ import annotations

import pytest

from bench.client import BenchError
from bench.serve.workloads import RECIPES, make


@pytest.mark.parametrize("name", RECIPES)
def test_a_workload_is_the_same_for_the_same_seed(name: str) -> None:
    assert make(name, {}, seed=3) == make(name, {}, seed=3)


@pytest.mark.parametrize("name", ["chat", "mixed", "throughput"])
def test_another_seed_makes_another_workload(name: str) -> None:
    assert make(name, {}, seed=3) != make(name, {}, seed=4)


def test_mixed_brings_long_prompts_in_bursts_half_an_interval_in() -> None:
    given = {"duration": 12.0, "long_every": 4.0, "long_count": 2, "long_prompt": 5000, "long_output": 3}
    long = [arrival for arrival in make("mixed", given, 0).arrivals if arrival.kind == "long"]
    assert [arrival.at for arrival in long] == [2.0, 2.0, 6.0, 6.0, 10.0, 10.0]
    assert {(arrival.prompt_tokens, arrival.max_tokens) for arrival in long} == {(5000, 3)}


def test_short_requests_come_as_often_as_the_rate_says_and_as_large_as_the_ranges_say() -> None:
    given = {"rate": 8.0, "duration": 1000.0, "prompt": range(10, 21), "output": range(5, 8)}
    arrivals = make("chat", given, 0).arrivals
    assert len(arrivals) == pytest.approx(8000, rel=0.05)  # Poisson: 1.1% is one standard deviation
    assert {arrival.prompt_tokens for arrival in arrivals} == set(range(10, 21))
    assert {arrival.max_tokens for arrival in arrivals} == {5, 6, 7}
    assert [arrival.at for arrival in arrivals] == sorted(arrival.at for arrival in arrivals)


def test_the_prefill_ladder_asks_one_request_at_a_time() -> None:
    workload = make("prefill", {"ladder": (100, 1000), "requests": 2}, 0)
    assert [len(phase) for phase in workload.phases()] == [1, 1, 1, 1]
    assert [arrival.prompt_tokens for arrival in workload.arrivals] == [100, 100, 1000, 1000]
    assert workload.kinds() == ("100 tokens", "1,000 tokens")


def test_streams_run_so_many_at_once_and_then_so_many_more() -> None:
    workload = make("streams", {"streams": (1, 8)}, 0)
    assert [len(phase) for phase in workload.phases()] == [1, 8]
    assert workload.kinds() == ("1 stream", "8 streams")


def test_throughput_asks_256_requests_at_once() -> None:
    arrivals = make("throughput", {}, 0).arrivals
    assert len(arrivals) == 256
    assert {arrival.at for arrival in arrivals} == {0.0}


def test_a_setting_that_a_workload_does_not_use_is_named() -> None:
    with pytest.raises(BenchError, match="--long-every has no effect on --workload chat"):
        make("chat", {"long_every": 3.0}, 0)


def test_a_workload_in_which_nobody_arrives_is_an_error() -> None:
    with pytest.raises(BenchError, match=r"nobody arrives within 0\.001 s"):
        make("chat", {"duration": 0.001}, 0)
