"""Who a request is counted against: caps, and fair shares of the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

HALF_LIFE = 10.0  # seconds after which what was used counts half


@dataclass(frozen=True, slots=True)
class Account:
    """What one API key may use. `share` is its weight beside others that want the device at the same time.

    `max_running` sequences at most hold blocks at once, `max_waiting` more may queue; 0 leaves it to the
    server's own bounds.
    """

    share: float = 1.0
    max_running: int = 0
    max_waiting: int = 0


class FairShares:
    """How much of the device each account used lately, and who is over its share."""

    def __init__(self, accounts: Mapping[str, Account]) -> None:
        self._accounts = accounts
        self._used: dict[str, float] = {}  # seconds, decaying
        self._at = 0.0

    def charge(self, used: Mapping[str, float], now: float) -> None:
        """Add seconds of the device that accounts used in a step."""
        keep = 0.5 ** (max(0.0, now - self._at) / HALF_LIFE)
        self._at = max(self._at, now)
        for account in self._used:
            self._used[account] *= keep
        for account, seconds in used.items():
            self._used[account] = self._used.get(account, 0.0) + seconds

    def over(self, active: Iterable[str]) -> set[str]:
        """Those of two or more `active` accounts that used more than their share of what all used."""
        shares = {name: self._share(name) for name in active}
        used = {name: self._used.get(name, 0.0) for name in shares}
        whole, weight = sum(used.values()), sum(shares.values())
        if len(shares) < 2 or whole <= 0.0:
            return set()
        return {name for name in shares if used[name] * weight > whole * shares[name]}

    def _share(self, name: str) -> float:
        account = self._accounts.get(name)
        return 1.0 if account is None else account.share
