"""Who goes first, what a running answer feels, caps, shares, forecasts and deadlines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed.core.accounts import Account
from tokenspeed.core.costs import Costs, Work
from tokenspeed.core.plan import NOTHING, Capacity, RowResult, StepPlan, StepResult
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.core.request import Request, Sampling, TokenDelta
from tokenspeed.core.scheduler import Scheduler
from tokenspeed.errors import DeadlineError, OverloadedError, RequestError

COSTS = Costs(base=4e-3, row=1e-4, token=1e-4, attended=1e-8, read=1e-7)
SAMPLED = RowResult((7,))


@dataclass
class Device:
    """A scheduler, and a device that takes exactly what the costs say; `run_ahead` is 0."""

    accounts: Mapping[str, Account] = field(default_factory=dict)
    options: SchedulerOptions = field(default_factory=SchedulerOptions)
    blocks: int = 7000
    now: float = 0.0
    first: dict[str, float] = field(default_factory=dict)  # when the first token of each request came
    tokens: dict[str, list[float]] = field(default_factory=dict)  # when each of its tokens came
    plans: list[StepPlan] = field(default_factory=list)

    def __post_init__(self) -> None:
        capacity = Capacity(self.blocks, block_size=16, max_context=1 << 20)
        self.scheduler = Scheduler(capacity, self.options, accounts=self.accounts, prior=COSTS)

    def submit(self, name: str, prompt: int, answer: int = 1, **fields: object) -> float:
        tokens = (int(name.encode().hex(), 16) % 9973, *range(prompt - 1))  # no prefix is shared
        made = Request(name, tokens, answer, Sampling(temperature=0.0), arrival=self.now, **fields)  # type: ignore[arg-type]
        return self.scheduler.submit(made, self.now)

    def step(self) -> bool:
        plan = self.scheduler.plan(self.now)
        if plan is None:
            return False
        self.plans.append(plan)
        seconds = COSTS.seconds(Work.of(plan.rows))
        assert plan.seconds == pytest.approx(seconds, rel=0.05)
        self.now += seconds
        results = tuple(SAMPLED if row.draw else NOTHING for row in plan.rows)
        for sequence, event in self.scheduler.apply(plan, StepResult(results, seconds)):
            if isinstance(event, TokenDelta):
                self.first.setdefault(sequence.request.id, self.now)
                self.tokens.setdefault(sequence.request.id, []).append(self.now)
        self.scheduler.check()
        return True

    def run(self, until: float = 1e9) -> None:
        while self.now < until and self.step():
            pass


arrivals = st.lists(
    st.tuples(
        st.floats(0.0, 0.5),  # when
        st.sampled_from([3, 40, 300, 4000]),  # tokens of the prompt
        st.integers(1, 60),  # of the answer
        st.integers(-1, 1),  # priority
        st.sampled_from(["", "one", "two"]),  # account
    ),
    min_size=1,
    max_size=25,
)


@given(arrivals, st.sampled_from([15.0, 30.0, 57.0]), st.sampled_from([0.1, 0.33, 0.6]))
@settings(max_examples=30, deadline=None)
def test_no_running_answer_pauses_longer_than_a_step_may_take_whatever_arrives(
    work: list[tuple[float, int, int, int, str]], target_ms: float, share: float
) -> None:
    device = Device(options=SchedulerOptions(target_step_ms=target_ms, eldest_share=share))
    coming = sorted(enumerate(work), key=lambda one: one[1][0])
    while coming or device.scheduler.running or device.scheduler.waiting:
        while coming and coming[0][1][0] <= device.now:
            number, (_, prompt, answer, priority, account) = coming.pop(0)
            device.submit(f"r{number}", prompt, answer, priority=priority, account=account)
        if not device.step():
            device.now = coming[0][1][0]
    decoding = max(COSTS.seconds(Work(len(work), read=len(work) * 4060)) / (1 - share), target_ms / 1e3)
    rounding = len(work) * (COSTS.row + COSTS.token + COSTS.attended * 4060)
    for times in device.tokens.values():
        gaps = [after - before for before, after in pairwise(times)]
        assert max(gaps, default=0.0) <= decoding * 1.05 + rounding


def test_a_short_prompt_has_its_token_in_the_next_step_and_that_step_is_short() -> None:
    device = Device(options=SchedulerOptions(target_step_ms=50.0, eldest_share=0.25))
    device.submit("talks", 3, 1000)
    device.submit("long", 20_000)
    for _ in range(5):
        device.step()
    device.submit("short", 40)
    device.step()
    assert "short" in device.first
    assert device.plans[-1].seconds == pytest.approx(0.025, rel=0.03)
    assert {row.sequence for row in device.plans[-1].rows} == {1, 2, 3}
    assert device.plans[-2].seconds == pytest.approx(0.05, rel=0.02)


def test_who_is_alone_prefills_in_long_steps_until_somebody_waits() -> None:
    device = Device(options=SchedulerOptions(target_step_ms=20.0, lone_overhead=0.05))
    device.submit("long", 20_000)
    device.step()
    assert device.plans[-1].seconds == pytest.approx(0.08, rel=0.02)
    device.submit("talks", 3, 1000)
    for _ in range(3):
        device.step()
    assert device.plans[-1].seconds == pytest.approx(0.02, rel=0.02)


def test_prefix_hits_count_as_done_in_the_order_of_urgency() -> None:
    device = Device(options=SchedulerOptions(target_step_ms=20.0))
    stem = tuple(range(3000))
    for name, prompt in (("stem", stem), ("other", (9,) * 300), ("follow", (*stem, 1, 2, 3))):
        if name == "other":
            device.run()
            device.submit("talks", 3, 1000)
            device.submit("busy", 2000)
        made = Request(name, prompt, 1, Sampling(temperature=0.0), arrival=device.now)
        device.scheduler.submit(made, device.now)
    device.run(until=device.now + 1.0)
    assert device.first["follow"] < device.first["other"] < device.first["busy"]


def test_a_class_goes_before_all_that_are_less_urgent_however_short() -> None:
    device = Device(options=SchedulerOptions(target_step_ms=20.0))
    device.submit("batch", 5, priority=1)
    device.submit("pressing", 900, priority=-1)
    device.submit("usual", 500)
    device.run()
    assert device.first["pressing"] < device.first["usual"] < device.first["batch"]


def test_who_has_waited_enough_starts_although_shorter_ones_keep_coming() -> None:
    device = Device(options=SchedulerOptions(target_step_ms=20.0, ageing_seconds=0.5, max_running=2))
    device.submit("long", 500)
    for number in range(400):
        device.submit(f"a{number}", 190)
        device.submit(f"b{number}", 190)
        device.step()
        if "long" in device.first:
            break
    assert 0.5 < device.first["long"] < 0.8
    assert device.scheduler.waiting > 0


def test_an_account_at_its_cap_waits_and_nobody_else_does() -> None:
    device = Device(accounts={"capped": Account(max_running=1)})
    for number in range(3):
        device.submit(f"c{number}", 10, 50, account="capped")
    device.submit("free", 4000, 50)
    while "free" not in device.first:
        device.step()
    assert [name for name in device.first if name.startswith("c")] == ["c0"]
    device.run()
    assert len(device.first) == 4


def test_an_account_with_a_full_queue_is_refused_and_told_its_cap() -> None:
    device = Device(accounts={"capped": Account(max_running=1, max_waiting=1)})
    device.submit("a", 10, 50, account="capped")
    device.submit("b", 10, 50, account="capped")
    with pytest.raises(OverloadedError, match=r"'capped' wait already, its max_waiting is 1") as refused:
        device.submit("c", 10, 50, account="capped")
    assert refused.value.code == "key_overloaded"
    assert refused.value.retry_after > 0
    device.submit("other", 10, 50)


def test_the_retry_after_of_a_full_queue_is_when_a_place_comes_free() -> None:
    device = Device(options=SchedulerOptions(max_running=1, max_waiting=1))
    device.submit("a", 10, 50)
    device.submit("b", 10, 50)
    device.step()
    with pytest.raises(OverloadedError) as refused:
        device.submit("c", 10, 50)
    device.run(until=device.now + refused.value.retry_after)
    device.submit("c", 10, 50)


def test_accounts_that_compete_share_the_device_by_their_weights() -> None:
    accounts = {"big": Account(share=3.0), "small": Account(share=1.0)}
    device = Device(accounts=accounts, options=SchedulerOptions(target_step_ms=20.0, ageing_seconds=3600.0))
    done = {"big": 0, "small": 0}
    for number in range(300):
        for name in done:
            device.submit(f"{name}{number}", 500, account=name)
    device.run(until=5.0)
    for name in done:
        done[name] = sum(first.startswith(name) for first in device.first)
    assert done["big"] / done["small"] == pytest.approx(3.0, rel=0.25)


def test_a_lone_account_is_never_held_back() -> None:
    device = Device(accounts={"small": Account(share=0.001)})
    predicted = device.submit("only", 100, account="small")
    device.run()
    assert device.first["only"] == pytest.approx(predicted, rel=0.05)


@pytest.mark.parametrize("beside", [0, 1, 6])
def test_the_first_token_comes_when_it_was_foretold(beside: int) -> None:
    device = Device()
    for number in range(beside):
        device.submit(f"long{number}", 5000, 30)
    for _ in range(4 * (beside > 0)):
        device.step()
    begun = device.now
    predicted = device.submit("short", 200)
    device.run()
    assert device.first["short"] - begun == pytest.approx(predicted, rel=0.15)


def test_a_forecast_counts_the_wait_for_a_slot() -> None:
    device = Device(options=SchedulerOptions(max_running=1))
    device.submit("runs", 10, 100)
    device.step()
    begun = device.now
    predicted = device.submit("waits", 10)
    device.run()
    assert device.first["waits"] - begun == pytest.approx(predicted, rel=0.2)


def test_a_deadline_that_cannot_be_met_is_refused_at_once_and_can_be_met_after_retry_after() -> None:
    device = Device()
    device.submit("elder", 300, 1000)
    for number in range(4):
        device.submit(f"long{number}", 3000)
    device.step()
    with pytest.raises(DeadlineError, match="wanted in 600 ms, and predicted") as refused:
        device.submit("asks", 3000, deadline=device.now + 0.6)
    assert (device.scheduler.running + device.scheduler.waiting) == 5
    device.run(until=device.now + refused.value.retry_after)
    deadline = device.now + 0.6
    device.submit("asks", 3000, deadline=deadline)
    device.run()
    assert device.first["asks"] <= deadline * 1.02


def test_a_deadline_that_an_idle_server_could_not_meet_is_the_requests_own_fault() -> None:
    device = Device()
    with pytest.raises(RequestError, match=r"takes 3\d\d ms even on an idle server") as refused:
        device.submit("asks", 3000, deadline=0.1)
    assert (refused.value.param, refused.value.code) == ("deadline", "deadline_unreachable")
    assert not isinstance(refused.value, OverloadedError)


def test_a_prefill_that_is_cut_for_a_shorter_one_yields() -> None:
    device = Device(options=SchedulerOptions(target_step_ms=20.0))
    device.submit("talks", 3, 1000)
    device.submit("long", 5000)
    for _ in range(3):
        device.step()
    assert device.scheduler.yields == 0
    device.submit("short", 50)
    device.step()
    assert device.scheduler.yields == 1


def test_the_longest_wait_is_that_of_whoever_has_no_token_yet() -> None:
    device = Device(options=SchedulerOptions(target_step_ms=20.0))
    assert device.scheduler.longest_wait(device.now) == 0.0
    device.submit("talks", 3, 1000)
    device.step()
    begun = device.now
    device.submit("long", 5000)
    device.step()
    assert device.scheduler.longest_wait(device.now) == pytest.approx(device.now - begun)
    device.run(until=5.0)
    assert device.scheduler.longest_wait(device.now) == 0.0
