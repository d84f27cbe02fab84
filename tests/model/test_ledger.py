"""A GPU's memory is divided before anything loads: what does not fit is told with the mend."""

from __future__ import annotations

import pytest

from tokenspeed.core.plan import Capacity
from tokenspeed.errors import ModelError
from tokenspeed.model.cuda.ledger import GIB, RESERVE_BYTES, Ledger, capacity_of, plan_ledger

BLOCK = 2 << 20
SIZES = {"weights": 15 * GIB, "workspace": GIB, "graphs": GIB, "block": BLOCK, "block_size": 16}


def planned(free: float = 139.0, fraction: float = 0.9, wanted: int = 0) -> Ledger:
    return plan_ledger(total=140 * GIB, free=int(free * GIB), fraction=fraction, wanted=wanted, **SIZES)


def test_keys_and_values_take_what_is_left_of_what_is_allowed() -> None:
    ledger = planned()
    taken = sum(ledger.uses.values())
    assert ledger.allowed - 2 * BLOCK < taken <= ledger.allowed - BLOCK  # one block takes what padding writes
    assert ledger.uses["reserve"] == RESERVE_BYTES
    assert ledger.tokens == 16 * ledger.blocks


def test_a_device_with_other_tenants_is_taken_as_it_is_found() -> None:
    assert planned(free=60.0).kv == pytest.approx(0.9 * 60 * GIB - 18 * GIB, abs=2 * BLOCK)


def test_the_operator_may_say_how_much() -> None:
    assert planned(wanted=8 * GIB).blocks == 8 * GIB // BLOCK
    with pytest.raises(ModelError, match=r"leaves 2\.0, not the 3\.0 of \[cache\] memory_mib; lower that"):
        planned(free=20.0, fraction=1.0, wanted=3 * GIB)


def test_too_little_memory_is_told_with_what_takes_it() -> None:
    told = r"has 19\.0 GiB free, .* allows 17\.1; weights take 15\.0, .* which leaves no KV memory; free some"
    with pytest.raises(ModelError, match=told):
        planned(free=19.0)


def test_the_longest_sequence_is_what_fits() -> None:
    ledger = planned(wanted=BLOCK * 10)
    assert capacity_of(ledger, 131_072) == Capacity(10, 16, 160)
    assert capacity_of(ledger, 100) == Capacity(10, 16, 100)


def test_one_line_tells_it() -> None:
    assert planned(wanted=8 * GIB).told() == (
        "GPU memory, GiB: 140.0, free 139.0; weights 15.0, workspace 1.0, graphs 1.0, reserve 1.0, "
        "KV cache 8.0 = 4096 blocks of 16, 65,536 tokens"
    )
