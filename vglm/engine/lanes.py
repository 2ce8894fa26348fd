"""The rows and page tables of a step, as they are put together."""

from __future__ import annotations

import numpy as np

from vglm.engine.request import IntArray, Sequence
from vglm.engine.tree import Tree


class Lanes:
    """What runs in a step, one lane after the other: a sequence has one, a growing tree one for each of its branches."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self.tokens: list[IntArray] = []
        self.blocks: list[IntArray] = []  # page tables in pieces
        self.valid: list[IntArray] = []
        self.num_pages: list[int] = []
        self.last_valid: list[int] = []  # of the last page
        self.starts: list[int] = []  # position of the first row
        self.counts: list[int] = []
        self.num_rows = 0

    def _add(self, start: int, position: int, count: int, num_context_pages: int) -> int:
        """A lane's sizes, its first row being the token `start`; returns the pages of its table."""
        own = -(-(start + count) // self._block_size)
        self.num_pages.append(num_context_pages + own)
        self.last_valid.append(start + count - (own - 1) * self._block_size)
        self.starts.append(position + start)
        self.counts.append(count)
        self.num_rows += count
        return num_context_pages + own

    def add(self, sequence: Sequence, count: int) -> None:
        """The next `count` tokens of a sequence."""
        start = sequence.num_computed
        pages = self._add(start, sequence.request.first_position, count, sequence.num_context_pages)
        self.tokens.append(sequence.tokens[start : start + count])
        self.blocks.append(sequence.pages.block[:pages])
        self.valid.append(sequence.pages.valid[:pages])

    def add_tree(self, sequence: Sequence, tree: Tree) -> None:
        """The branches that a tree computes in this step, each after the prompt's full pages."""
        prompt, context, size = sequence.num_prompt_tokens, sequence.num_context_pages, self._block_size
        shared = context + prompt // size
        block, valid = sequence.pages.block[:shared], sequence.pages.valid[:shared]
        own = np.array([page for lane in tree.lanes for page in lane[2]], np.int32)
        full = np.full(max(len(lane[2]) for lane in tree.lanes), size, np.int32)
        first = 0
        for tokens, start, pages in tree.lanes:
            self._add(prompt + start, sequence.request.first_position, len(tokens), context)
            end = first + len(pages)
            self.blocks += (block, own[first:end])
            self.valid += (valid, full[: len(pages)])
            first = end
        self.tokens.append(np.array([token for lane in tree.lanes for token in lane[0]], np.int32))
