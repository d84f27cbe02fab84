"""Every unfinished sequence: those that wait, by urgency and by age, and those that run."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Iterator
from operator import attrgetter

from tokenspeed.core.sequence import Sequence

by_age = attrgetter("due", "id")
_by_urgency = attrgetter("urgency")


def place(sequence: Sequence, over: Collection[str]) -> tuple[float, bool, tuple[float, ...]]:
    """The order of urgency across accounts: class, then those `over` their fair share, then the policy's."""
    urgency = sequence.urgency
    return (urgency[0], sequence.request.account in over, urgency)


class Waiting:
    """Sequences that hold no blocks, sorted by urgency for each account, since fair shares order accounts."""

    def __init__(self) -> None:
        self._accounts: dict[str, list[Sequence]] = {}
        self._aged: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._aged)

    def __iter__(self) -> Iterator[Sequence]:
        """The eldest first."""
        return iter(self._aged)

    def add(self, sequence: Sequence) -> None:
        """Queue it by its `urgency`, which must not change until it leaves."""
        insort(self._accounts.setdefault(sequence.request.account, []), sequence, key=_by_urgency)
        insort(self._aged, sequence, key=by_age)

    def remove(self, sequence: Sequence) -> None:
        queue = self._accounts[sequence.request.account]
        del queue[bisect_left(queue, sequence.urgency, key=_by_urgency)]
        if not queue:
            del self._accounts[sequence.request.account]
        del self._aged[bisect_left(self._aged, by_age(sequence), key=by_age)]

    @property
    def accounts(self) -> Collection[str]:
        """Those that have something here."""
        return self._accounts.keys()

    def first(self, over: Collection[str], accounts: Collection[str]) -> Sequence | None:
        """The most urgent of `accounts`; those `over` their share behind others of a class."""
        heads = [queue[0] for account, queue in self._accounts.items() if account in accounts]
        return min(heads, key=lambda sequence: place(sequence, over), default=None)

    def before(self, sequence: Sequence, over: Collection[str]) -> list[Sequence]:
        """All that are more urgent than a sequence, which need not be here; in no order across accounts."""
        mine = place(sequence, over)
        found: list[Sequence] = []
        for queue in self._accounts.values():
            found += queue[: bisect_left(queue, mine, key=lambda other: place(other, over))]
        return found

    def eldest(self, accounts: Collection[str]) -> Sequence | None:
        """The one of `accounts` that is due first."""
        return next((sequence for sequence in self._aged if sequence.request.account in accounts), None)

    def check(self) -> None:
        """Raise AssertionError unless everything is in its order."""
        for queue in self._accounts.values():
            urgencies = [sequence.urgency for sequence in queue]
            assert urgencies == sorted(urgencies)
        assert sorted(self._aged, key=by_age) == self._aged
        assert sum(map(len, self._accounts.values())) == len(self._aged)


class Queues:
    """Who runs and who waits, counted by account. Choices that wait for their leader are in neither."""

    def __init__(self) -> None:
        self.running: dict[int, Sequence] = {}  # by id; they hold blocks
        self.waiting = Waiting()
        self.unfinished = 0
        self._unfinished_of: Counter[str] = Counter()
        self._running_of: Counter[str] = Counter()
        self._choices: dict[str, list[Sequence]] = {}  # the unfinished ones, by request

    @property
    def accounts(self) -> Collection[str]:
        """Those that have something unfinished."""
        return self._unfinished_of.keys()

    def running_of(self, account: str) -> int:
        return self._running_of[account]

    def waiting_of(self, account: str) -> int:
        """Sequences of an account that hold no blocks yet, or no more."""
        return self._unfinished_of[account] - self._running_of[account]

    def choices_of(self, request_id: str) -> list[Sequence]:
        """The unfinished choices of a request; none of one that is unknown, or has ended."""
        return list(self._choices.get(request_id, ()))

    def enter(self, choices: list[Sequence]) -> None:
        """All choices of a new request; each is to wait, itself or behind its leader."""
        request = choices[0].request
        self.unfinished += len(choices)
        self._unfinished_of[request.account] += len(choices)
        self._choices[request.id] = list(choices)

    def start(self, sequence: Sequence) -> None:
        """It waits no more, and runs."""
        self.waiting.remove(sequence)
        self.running[sequence.id] = sequence
        self._running_of[sequence.request.account] += 1

    def preempt(self, sequence: Sequence) -> None:
        """It runs no more and is to wait again."""
        del self.running[sequence.id]
        self._running_of[sequence.request.account] -= 1

    def leave(self, sequence: Sequence) -> None:
        """It has ended, wherever it was."""
        account = sequence.request.account
        if self.running.pop(sequence.id, None) is not None:
            self._running_of[account] -= 1
        elif sequence.leader is None or sequence not in sequence.leader.siblings:
            self.waiting.remove(sequence)
        else:
            sequence.leader.siblings.remove(sequence)
        choices = self._choices[sequence.request.id]
        choices.remove(sequence)
        if not choices:
            del self._choices[sequence.request.id]
        self.unfinished -= 1
        self._unfinished_of[account] -= 1
        if not self._unfinished_of[account]:
            del self._unfinished_of[account], self._running_of[account]

    def check(self) -> None:
        """Raise AssertionError unless the counts agree."""
        everyone = [*self.waiting, *self.running.values()]
        everyone += [sibling for sequence in everyone for sibling in sequence.siblings]
        assert self.unfinished == len(everyone) == sum(map(len, self._choices.values()))
        assert +self._unfinished_of == Counter(s.request.account for s in everyone)
        assert +self._running_of == Counter(s.request.account for s in self.running.values())
        self.waiting.check()
