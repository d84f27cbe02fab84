"""Fair shares: who is behind others of the same class, and for how long."""

from __future__ import annotations

import pytest

from tokenspeed.core.accounts import HALF_LIFE, Account, FairShares


def test_who_used_more_than_its_share_is_over_it() -> None:
    shares = FairShares({"big": Account(share=3.0)})
    shares.charge({"big": 2.0, "small": 1.0}, now=1.0)
    assert shares.over(["big", "small"]) == {"small"}  # big may have three times as much
    shares.charge({"big": 2.0}, now=1.0)
    assert shares.over(["big", "small"]) == {"big"}


def test_nobody_is_over_a_share_of_nothing_or_alone() -> None:
    shares = FairShares({})
    assert shares.over(["a", "b"]) == set()
    shares.charge({"a": 9.0}, now=0.0)
    assert shares.over(["a"]) == set()


def test_what_was_used_long_ago_is_forgotten() -> None:
    shares = FairShares({})
    shares.charge({"a": 8.0}, now=0.0)
    shares.charge({"b": 1.0}, now=2 * HALF_LIFE)
    assert shares.over(["a", "b"]) == {"a"}
    shares.charge({"b": 0.5}, now=3 * HALF_LIFE)  # 1 of a's is left, and as much of b's
    shares.charge({"b": 0.1}, now=3 * HALF_LIFE)
    assert shares.over(["a", "b"]) == {"b"}


@pytest.mark.parametrize("absent", ["gone", "never"])
def test_only_those_that_want_the_device_now_are_compared(absent: str) -> None:
    shares = FairShares({})
    shares.charge({"gone": 50.0, "a": 2.0, "b": 1.0}, now=0.0)
    assert shares.over(["a", "b"]) == {"a"}
    assert absent not in shares.over(["a", "b"])
