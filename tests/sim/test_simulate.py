"""The simulator: repeatable, complete, and what the default policy must show on the reference workload."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.simulate import prioritised
from bench.simulation.policies import PRESETS, Variant, variant
from bench.simulation.workloads import jobs_of, settings_of
from tokenspeed.core.costs import TYPICAL
from tokenspeed.core.plan import Capacity
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.core.request import FinishReason, Request, Sampling
from tokenspeed.sim.backend import token
from tokenspeed.sim.bound import waits
from tokenspeed.sim.device import DEVICES, Device
from tokenspeed.sim.simulate import Job, Leave, Trace, Traffic, simulate

H200 = DEVICES["h200-8b"]


@cache
def mixed(policy: str, seed: int = 0, seconds: float = 24.0) -> Trace:
    """The reference: short chats, and two prompts of 30,000 tokens every 3 s, on an H200."""
    jobs = jobs_of("mixed", settings_of("mixed", "h200-8b", {"duration": seconds}), seed)
    one = variant(policy, SchedulerOptions())
    return simulate(prioritised(Traffic(jobs), one.priorities), H200, one.options)


def ttft(trace: Trace, kind: str, percent: float) -> float:
    """Milliseconds."""
    found = [outcome.wait for outcome in trace.outcomes if outcome.kind == kind]
    return 1e3 * float(np.percentile([wait for wait in found if wait is not None], percent))


def gap(trace: Trace, kind: str, percent: float) -> float:
    """Milliseconds."""
    gaps = np.concatenate([np.diff(outcome.times) for outcome in trace.outcomes if outcome.kind == kind])
    return 1e3 * float(np.percentile(gaps, percent))


def felt(trace: Trace) -> list[tuple[object, ...]]:
    return [(o.request.id, o.choice, o.predicted, tuple(o.times), o.reason, o.ended) for o in trace.outcomes]


@pytest.mark.parametrize("policy", PRESETS)
def test_every_request_of_the_reference_gets_all_its_tokens(policy: str) -> None:
    for outcome in mixed(policy, seconds=6.0).outcomes:
        assert outcome.reason is FinishReason.LENGTH
        assert len(outcome.times) == outcome.request.max_tokens


def test_first_come_first_served_is_what_was_measured_of_it() -> None:
    """Another server with this policy and this device had 924 and 2,312 ms, and gaps of 346 ms at p99."""
    trace = mixed("first-come")
    assert 850 <= ttft(trace, "short", 50) <= 1000
    assert 2200 <= ttft(trace, "short", 99) <= 2400
    assert 300 <= gap(trace, "short", 99) <= 390


@pytest.mark.parametrize("seed", [0, 1])
def test_short_requests_do_not_wait_for_long_ones_and_the_long_ones_hardly_for_them(seed: int) -> None:
    ours, base = mixed("ours", seed), mixed("first-come", seed)
    assert ttft(ours, "short", 50) <= 50
    assert ttft(ours, "short", 99) <= 100
    assert gap(ours, "short", 99) <= 60
    assert ttft(ours, "long", 50) <= 1.25 * ttft(base, "long", 50)


def test_nobody_on_the_reference_waits_beyond_the_bound() -> None:
    found = waits(mixed("ours"))
    assert len(found) == len(mixed("ours").outcomes)
    assert all(wait.felt <= wait.bound for wait in found)


def test_a_policy_without_a_bound_promises_none() -> None:
    assert waits(mixed("shortest-first")) == []


def test_what_was_predicted_for_short_requests_is_what_they_felt() -> None:
    short = [outcome for outcome in mixed("ours").outcomes if outcome.kind == "short"]
    off = [abs(outcome.predicted - outcome.wait) / outcome.wait for outcome in short if outcome.wait]
    assert float(np.median(off)) <= 0.25


def test_a_server_that_knows_nothing_of_its_device_learns_it_within_the_reference() -> None:
    jobs = jobs_of("mixed", settings_of("mixed", "h200-8b", {"duration": 12.0}), 0)
    trace = simulate(Traffic(jobs), H200, SchedulerOptions(), prior=TYPICAL)
    off = [abs(step.predicted - step.seconds) / step.seconds for step in trace.steps[50:]]
    assert float(np.median(off)) <= 0.05
    assert ttft(trace, "short", 99) <= 120


SMALL = Device("small", DEVICES["cpu"].costs, Capacity(blocks=400, block_size=4, max_context=1024))


@st.composite
def traffic(draw: st.DrawFn) -> Traffic:
    """Requests of all lengths; some share a prefix, some have several choices, some clients leave."""
    jobs = []
    for number in range(draw(st.integers(1, 25))):
        stem, own = draw(st.integers(0, 40)), draw(st.integers(1, 300))
        prompt = tuple([token(0, i) for i in range(stem)] + [token(number << 8, i) for i in range(own)])
        choices = draw(st.integers(1, 3))
        leave = draw(st.none() | st.builds(Leave, st.integers(0, 10), st.floats(0.0, 3.0)))
        jobs.append(
            Job(
                draw(st.floats(0.0, 2.0)),
                "any",
                Request(
                    str(number),
                    prompt,
                    draw(st.integers(0, 12)),
                    Sampling(seed=number << 8),
                    n=choices,
                    priority=draw(st.integers(-1, 2)),
                ),
                {} if leave is None else {choices - 1: leave},
            )
        )
    return Traffic(jobs)


@given(traffic(), st.sampled_from(list(PRESETS)), st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_every_choice_ends_once_and_a_run_repeats(made: Traffic, policy: str, max_running: int) -> None:
    options = variant(f"{policy},max_running={max_running}", SchedulerOptions()).options
    trace = simulate(made, SMALL, options)
    assert len(trace.outcomes) == sum(job.request.n for job in made.jobs)
    for outcome in trace.outcomes:
        assert (outcome.reason is None) == (outcome.refused is not None)
        if outcome.reason is FinishReason.LENGTH:
            assert len(outcome.times) == outcome.request.max_tokens
    assert felt(simulate(made, SMALL, options)) == felt(trace)


@given(traffic(), st.sampled_from([0.1, 0.25, 0.5]), st.sampled_from([0.0, 30.0, 60.0]))
@settings(max_examples=25, deadline=None)
def test_nobody_waits_beyond_the_bound(made: Traffic, share: float, target: float) -> None:
    options = SchedulerOptions(eldest_share=share, target_step_ms=target, step_tokens=256, ageing_seconds=0.2)
    roomy = SMALL._replace(capacity=Capacity(blocks=20_000, block_size=4, max_context=1024))
    for wait in waits(simulate(made, roomy, options)):
        assert wait.felt <= wait.bound


def test_a_request_that_cannot_be_served_is_an_outcome() -> None:
    job = Job(0.0, "huge", Request("0", tuple(range(2000)), 1))
    (outcome,) = simulate(Traffic([job]), SMALL, SchedulerOptions()).outcomes
    assert outcome.refused is not None
    assert outcome.reason is None


def test_a_client_leaves_when_it_is_said_to() -> None:
    request = Request("0", tuple(range(100)), 50, Sampling(seed=1), n=2)
    first, second = simulate(
        Traffic([Job(1.0, "any", request, {0: Leave(5), 1: Leave(0, at=1.5)})]), SMALL, SchedulerOptions()
    ).outcomes
    assert first.reason is second.reason is FinishReason.CANCELLED
    assert len(first.times) == 5
    assert second.ended == pytest.approx(1.5)


def test_a_policy_may_give_kinds_of_requests_priorities() -> None:
    jobs = jobs_of("mixed", settings_of("mixed", "h200-8b", {"duration": 2.0}), 0)
    one: Variant = variant("priority", SchedulerOptions())
    priorities = {job.kind: job.request.priority for job in prioritised(Traffic(jobs), one.priorities).jobs}
    assert priorities == {"short": 0, "long": 1}
