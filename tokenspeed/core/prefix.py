"""Finding blocks by the tokens they hold, so that a shared prompt is computed once.

A chain of full blocks is a path of nodes; a node is named by its parent and its own tokens, compared
exactly, so that no two prompts can ever be taken for each other. Node numbers are never used again: when
a block is forgotten its descendants become unreachable by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

ROOT = 0
Edge = tuple[int, tuple[int, ...]]  # the parent's node, the tokens of one block


class PrefixIndex:
    """From the leading full blocks of a token sequence to the blocks that hold them."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._nodes: dict[Edge, tuple[int, int]] = {}  # edge -> (node, block)
        self._edges: dict[int, Edge] = {}  # block -> the edge that finds it
        self._last_node = ROOT

    def find(self, tokens: Sequence[int]) -> tuple[list[int], int]:
        """The longest remembered chain of `tokens`, short of its last token: (blocks, last node).

        The last token is left out because its logits are what the caller wants next.
        """
        blocks: list[int] = []
        node = ROOT
        for start in range(0, len(tokens) - self._block_size, self._block_size):
            found = self._nodes.get((node, tuple(tokens[start : start + self._block_size])))
            if found is None:
                break
            node, block = found
            blocks.append(block)
        return blocks, node

    def publish(self, node: int, tokens: tuple[int, ...], block: int) -> tuple[int, bool]:
        """Make `block`, which holds `tokens` behind `node`, findable: (its node, whether it is new).

        Where an equal chain is known already, that one stays and `block` remains its holder's alone.
        """
        edge = (node, tokens)
        known = self._nodes.get(edge)
        if known is not None:
            return known[0], False
        self._last_node += 1
        self._nodes[edge] = (self._last_node, block)
        self._edges[block] = edge
        return self._last_node, True

    def forget(self, blocks: Sequence[int]) -> None:
        """Drop blocks whose memory is about to hold something else."""
        for block in blocks:
            del self._nodes[self._edges.pop(block)]

    def __len__(self) -> int:
        return len(self._nodes)
