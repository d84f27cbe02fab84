"""The bench of steps without HTTP measures steps that give tokens."""

from __future__ import annotations

from collections.abc import Callable

from bench.gpu_steps import decode, prefill
from tokenspeed.backend.stepper import Stepper
from tokenspeed.model.cuda.network import Bounds


def test_steps_are_measured_on_whatever_device_there_is(make_stepper: Callable[[Bounds], Stepper]) -> None:
    stepper = make_stepper(Bounds(64, 8, 8, 64))
    step = decode(stepper, 3, 16, block_size=4, steps=8)
    assert 0 < step.seconds < 1
    assert 0 <= step.idle < 1
    assert 0 < step.host < 1
    assert 0 < prefill(stepper, 12, 20, block_size=4) < 1
