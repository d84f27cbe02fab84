"""The bookkeeping of KV blocks: who holds which, and which may be remembered for a prefix.

A block is free, held (by one sequence or several) or remembered (held by nobody, its content still
valid and findable). free + held + remembered = total, always.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class BlockPool:
    """Reference counts over `total` blocks. Remembered blocks are given up oldest first.

    A draft model has a block of its own for each, under the same number; `drafted` ones it has computed.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total - 1, -1, -1))
        self._references = [0] * total
        self._remembered: dict[int, None] = {}  # in order of release, oldest first
        self._findable: set[int] = set()
        self._forgotten: list[int] = []
        self._drafted: set[int] = set()

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def remembered(self) -> int:
        return len(self._remembered)

    @property
    def available(self) -> int:
        """Blocks that `take` can give: free ones, and remembered ones that it forgets."""
        return len(self._free) + len(self._remembered)

    @property
    def held(self) -> int:
        return self.total - len(self._free) - len(self._remembered)

    def take(self, count: int) -> list[int]:
        """Take `count` blocks for one holder; there must be as many `available`."""
        if count > self.available:
            raise ValueError(f"{count} blocks asked for, {self.available} available")
        taken = []
        for _ in range(count):
            block = self._free.pop() if self._free else self._forget_oldest()
            self._references[block] = 1
            self._drafted.discard(block)
            taken.append(block)
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """One more holder for each of `blocks`, which are held or remembered."""
        for block in blocks:
            if self._references[block] == 0:
                del self._remembered[block]
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less. The tail is released first, so that it is forgotten before what it follows."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._findable:
                    self._remembered[block] = None
                else:
                    self._free.append(block)

    def make_findable(self, block: int) -> None:
        """Keep the block's content when its last holder releases it."""
        self._findable.add(block)

    def mark_drafted(self, block: int) -> None:
        """The draft model has computed all tokens of a block, which stays so until it is taken again."""
        self._drafted.add(block)

    def drafted(self, block: int) -> bool:
        """Whether the draft model has computed all tokens of a block, for whichever holder."""
        return block in self._drafted

    def drain_forgotten(self) -> list[int]:
        """The blocks given up since the last call; whoever finds blocks by content must drop these."""
        forgotten, self._forgotten = self._forgotten, []
        return forgotten

    def remembered_among(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` nobody holds: sharing them lowers `available` by as many."""
        return sum(self._references[block] == 0 for block in blocks)

    def references(self, block: int) -> int:
        return self._references[block]

    def _forget_oldest(self) -> int:
        block = next(iter(self._remembered))
        del self._remembered[block]
        self._findable.discard(block)
        self._forgotten.append(block)
        return block
