"""The books of blocks, driven at random and compared with plain counting."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from tokenspeed.core.blocks import BlockPool
from tokenspeed.core.prefix import ROOT, PrefixIndex


class Books(RuleBasedStateMachine):
    tables = Bundle("tables")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12)
        self.held: list[list[int]] = []
        self.findable: set[int] = set()
        self.drafted: set[int] = set()

    @rule(target=tables, count=st.integers(0, 5))
    def take(self, count: int) -> object:
        if count > self.pool.available:
            with pytest.raises(ValueError, match="available"):
                self.pool.take(count)
            return multiple()
        table = self.pool.take(count)
        self.findable -= set(self.pool.drain_forgotten())
        self.drafted -= set(table)
        assert not self.findable & set(table), "a block that can be found was handed out"
        self.held.append(table)
        return table

    @rule(table=tables)
    def draft(self, table: list[int]) -> None:
        for block in table[:2]:
            self.pool.mark_drafted(block)
            self.drafted.add(block)

    @rule(target=tables, table=tables)
    def share(self, table: list[int]) -> list[int]:
        copy = list(table)
        self.pool.share(copy)
        self.held.append(copy)
        return copy

    @rule(table=tables)
    def publish(self, table: list[int]) -> None:
        for block in table:
            self.pool.make_findable(block)
        self.findable |= set(table)

    @rule(table=consumes(tables))
    def release(self, table: list[int]) -> None:
        self.pool.release(table)
        self.held = [other for other in self.held if other is not table]

    @invariant()
    def counts_agree(self) -> None:
        pool = self.pool
        used = {block for table in self.held for block in table}
        assert pool.free + pool.held + pool.remembered == pool.total
        assert pool.held == len(used)
        assert pool.remembered == len(self.findable - used)
        for block in range(pool.total):
            assert pool.references(block) == sum(table.count(block) for table in self.held)
            assert pool.drafted(block) == (block in self.drafted)


TestBooks = Books.TestCase


def test_the_tail_of_a_prompt_is_forgotten_before_its_head() -> None:
    pool = BlockPool(4)
    table = pool.take(3)
    for block in table:
        pool.make_findable(block)
    pool.release(table)
    pool.take(2)
    assert pool.drain_forgotten() == [table[2]]


def test_a_prompt_is_found_up_to_the_first_block_that_differs() -> None:
    index = PrefixIndex(2)
    node = ROOT
    for block, tokens in enumerate([(1, 2), (3, 4), (5, 6)]):
        node, new = index.publish(node, tokens, block)
        assert new
    assert index.find([1, 2, 3, 4, 9, 9, 9])[0] == [0, 1]
    assert index.find([3, 4, 5, 6])[0] == []


def test_the_last_token_is_never_found_because_its_logits_are_wanted() -> None:
    index = PrefixIndex(2)
    node, _ = index.publish(ROOT, (1, 2), 0)
    index.publish(node, (3, 4), 1)
    assert index.find([1, 2, 3, 4])[0] == [0]
    assert index.find([1, 2, 3, 4, 5])[0] == [0, 1]


def test_what_is_behind_a_forgotten_block_is_not_found_again() -> None:
    index = PrefixIndex(1)
    first, _ = index.publish(ROOT, (1,), 0)
    index.publish(first, (2,), 1)
    index.forget([0])
    index.publish(ROOT, (1,), 5)
    assert index.find([1, 2, 3])[0] == [5]


def test_an_equal_chain_keeps_the_block_that_was_there_first() -> None:
    index = PrefixIndex(1)
    node, _ = index.publish(ROOT, (1,), 0)
    assert index.publish(ROOT, (1,), 7) == (node, False)
    assert index.find([1, 2])[0] == [0]
