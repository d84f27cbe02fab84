"""The block tables of sequences: sharing what is remembered, growing, publishing what is full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from tokenspeed.core.blocks import BlockPool
from tokenspeed.core.plan import Capacity
from tokenspeed.core.prefix import ROOT, PrefixIndex
from tokenspeed.core.sequence import Sequence


class BlockTables:
    """One pool of blocks, the index that finds their content, and the tables that sequences hold of them.

    With `prefix_cache` off nothing outlives its holder; choices of one prompt share its blocks all the same.
    """

    def __init__(self, capacity: Capacity, *, prefix_cache: bool) -> None:
        self.pool = BlockPool(capacity.blocks)
        self.block_size = capacity.block_size
        self._prefix = PrefixIndex(capacity.block_size) if prefix_cache else None

    def to_hold(self, tokens: int) -> int:
        """Blocks that hold `tokens`."""
        return -(-tokens // self.block_size)

    def wanted(self, sequence: Sequence) -> int:
        """Blocks that the known tokens of a running sequence still need."""
        return self.to_hold(len(sequence.tokens)) - len(sequence.blocks)

    def remembered_tokens(self, sequence: Sequence) -> int:
        """Tokens of a waiting sequence that it would not have to compute if it started now."""
        return len(self._shared(sequence)[0]) * self.block_size

    def open(self, sequence: Sequence, reserved: int) -> bool:
        """Start a table with the blocks that can be shared, if the rest fits beside `reserved` blocks."""
        blocks, node = self._shared(sequence)
        missing = self.to_hold(len(sequence.tokens)) - len(blocks)
        if self.pool.available - self.pool.remembered_among(blocks) - reserved < missing:
            return False
        self.pool.share(blocks)
        sequence.blocks = blocks
        sequence.table = tuple(blocks)
        sequence.computed = sequence.planned = len(blocks) * self.block_size
        sequence.published = len(blocks)
        sequence.node = node
        self.follow(sequence)
        return True

    def missing(self, sequence: Sequence, count: int) -> int:
        """Blocks to take before `count` more tokens can be computed."""
        return self.to_hold(sequence.planned + count) - len(sequence.blocks)

    def extend(self, sequence: Sequence, blocks: int) -> None:
        """Take so many blocks, which must be available."""
        sequence.blocks += self.pool.take(blocks)
        sequence.table = tuple(sequence.blocks)
        if self._prefix is not None:
            self._prefix.forget(self.pool.drain_forgotten())

    def close(self, sequence: Sequence) -> None:
        """Give everything back; what is published stays remembered."""
        self.pool.release(sequence.blocks)
        sequence.forget()

    def publish(self, sequence: Sequence) -> None:
        """Let others find the blocks that are full by now."""
        size = self.block_size
        while (sequence.published + 1) * size <= sequence.computed:
            start = sequence.published * size
            if self._prefix is not None:
                block = sequence.blocks[sequence.published]
                tokens = tuple(sequence.tokens[start : start + size])
                sequence.node, new = self._prefix.publish(sequence.node, tokens, block)
                if new:
                    self.pool.make_findable(block)
            sequence.published += 1

    def caught_up(self, sequence: Sequence, since: int, until: int) -> None:
        """The draft model has computed the tokens from `since` until `until`, behind all before them."""
        sequence.caught = max(sequence.caught, until)
        for block in sequence.blocks[since // self.block_size : until // self.block_size]:
            self.pool.mark_drafted(block)

    def follow(self, sequence: Sequence) -> None:
        """Let the draft model pass over what it has computed already, for others that share the blocks."""
        blocks, size = sequence.blocks, self.block_size
        while (at := sequence.caught // size) < len(blocks) and self.pool.drafted(blocks[at]):
            sequence.caught = (at + 1) * size

    def check(self, holders: Collection[Sequence]) -> None:
        """Raise AssertionError unless every block is accounted for, and its holders are those."""
        pool = self.pool
        held = Counter(block for sequence in holders for block in sequence.blocks)
        assert pool.free + pool.held + pool.remembered == pool.total
        assert all(pool.references(block) == held[block] for block in range(pool.total))
        for s in holders:
            assert self.to_hold(s.planned) <= len(s.blocks) == len(s.table)
            assert s.caught <= s.planned
            assert not any(map(pool.drafted, s.blocks[s.computed // self.block_size :]))

    def _shared(self, sequence: Sequence) -> tuple[list[int], int]:
        if sequence.wants_scores or sequence.pooling == "mean":
            return [], ROOT  # these need what comes out after every token of the prompt
        if self._prefix is not None:
            return self._prefix.find(sequence.tokens)
        leader = sequence.leader
        if leader is None:
            return [], ROOT
        return leader.blocks[: min(leader.published, (sequence.prompt_length - 1) // self.block_size)], ROOT
