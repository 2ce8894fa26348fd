"""One run of a trie: what it computes, what it scores, which others leave it, and its pages."""

from __future__ import annotations

from vglm.engine.block_manager import BlockManager
from vglm.engine.trie import Branch


class Run:
    """A run of the trie, from the branch `head` to its end: being computed, or waiting for others to leave it.

    `tokens` are computed from `start` tokens after the prompt on; `done` of them are. `counts` [tokens] says how many
    `ids` each of them scores; `numbers` are theirs in the trie. `pending`: branches that leave the run and have not
    started, the one that leaves last in front. `base`: the run that it leaves itself. `blocks`: its own pages, a
    reference each; None when it has lost them. `scored`: all its outputs are known.
    """

    __slots__ = (
        "base", "blocks", "counts", "done", "head", "ids", "numbers", "pending", "scored", "start", "taken", "tokens",
    )  # fmt: skip

    def __init__(self, head: Branch, base: Run | None, blocks: list[int] | None) -> None:
        self.head = head
        self.base = base
        self.blocks = blocks
        self.start = head.start
        self.tokens: list[int] = []
        self.done = self.taken = 0  # tokens, and of `ids`
        self.counts: list[int] = []
        self.ids: list[int] = []
        self.numbers: list[int] = []
        self.pending: list[Branch] = []
        self.scored = False
        branch: Branch | None = head
        while branch is not None:
            self._add(branch)
            branch = branch.next
        self.pending.reverse()

    def _add(self, branch: Branch) -> None:
        """Go on with a branch: each of its tokens scores the next, its last one all that may come after it."""
        tokens = branch.tokens
        self.tokens += tokens[: branch.num_rows]
        self.counts += [1] * (len(tokens) - 1)
        self.ids += tokens[1:]
        self.numbers += range(branch.first + 1, branch.first + len(tokens))
        if branch.children:
            if tokens:
                self.counts.append(len(branch.heads))
            self.ids += branch.heads
            self.numbers += branch.head_numbers
            self.pending += [
                child for child in branch.children if child.run_rows and child is not branch.next
            ]

    @property
    def left(self) -> int:
        """Tokens that are still to be computed."""
        return len(self.tokens) - self.done

    @property
    def last_start(self) -> int:
        """Tokens of its path that those who have not left it yet need."""
        return self.pending[0].start

    @property
    def pending_rows(self) -> int:
        """Tokens of the runs that leave it and have not started."""
        return sum(branch.run_rows for branch in self.pending)

    def keep_pages(self, tokens: int, blocks: BlockManager) -> None:
        """Give back all pages but those of the first `tokens` from the prompt's last page on."""
        assert self.blocks is not None
        kept = blocks.pool.blocks_for(tokens)
        for block in self.blocks[kept:]:
            blocks.pool.release(block)
        del self.blocks[kept:]

    def lose_pages(self, blocks: BlockManager) -> None:
        """Give its pages back."""
        for block in self.blocks or ():
            blocks.pool.release(block)
        self.blocks = None

    def restart(self, blocks: list[int]) -> None:
        """Compute it again, as far as it is still needed, for its keys and values alone."""
        parent = self.pending[0].parent
        assert parent is not None
        self.tokens, self.start, self.done, self.blocks = parent.path(), 0, 0, blocks
