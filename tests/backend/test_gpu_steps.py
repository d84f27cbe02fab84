"""The bench of steps without HTTP measures steps that give tokens."""

from __future__ import annotations

from collections.abc import Callable

from bench.gpu_steps import decode, given, guessed, prefill, verify
from tests.backend.conftest import Tiny
from tokenspeed.backend.stepper import Stepper
from tokenspeed.model.cuda.network import Bounds


def test_steps_are_measured_on_whatever_device_there_is(
    tiny: Tiny, make_stepper: Callable[..., Stepper]
) -> None:
    stepper = make_stepper(Bounds(64, 8, 8, 64, few=4), tiny)
    step = decode(stepper, 3, 16, block_size=4, steps=8)
    assert 0 < step.seconds < 1
    assert 0 <= step.idle < 1
    assert 0 < step.host < 1
    for plan in (given(2, 8, 3, 4), guessed(2, 8, 3, 4, 0), guessed(2, 8, 3, 4, 1)):
        assert 0 < verify(stepper, plan).seconds < 1
    assert 0 < prefill(stepper, 12, 20, block_size=4) < 1
