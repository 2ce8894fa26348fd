"""Exact scores of many candidates after one prompt, each prefix that they share computed once.

A TREE request is one sequence to the scheduler. First it computes its prompt like any other. Then it **grows**: the runs of
its trie (engine/trie.py) are sequences of their own in the batch, several hundred in a step, each with a page table as if
its path from the prompt on were the whole request:

    [the context's pages][the prompt's full pages][own pages: the partial last page of the prompt, and the path]

So a candidate gets the bits that it gets alone. A run that leaves another one shares its full pages and copies the partial
one; the last to leave goes on in the pages themselves. It can start when the other is computed. Those that leave what was
computed last go first (depth first), which keeps few runs waiting for others to leave them. `num_tokens` of the sequence
counts what can run at the moment, so that the scheduler hands out the step's tokens as it does to prompts.

When memory is short, the runs that are needed last lose their pages and are computed again, from the prompt on, when their
turn comes; a preempted request loses all of them. Scores that have been computed stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from vglm.engine.block_manager import BlockManager
from vglm.engine.request import FloatArray, Sequence
from vglm.engine.tree_run import Run
from vglm.engine.trie import Branch, CandidateTrie

MAX_LANES = 512  # runs in a step: each has a page of its own


class Tree:
    """What a TREE request has computed, is computing, and wants from the next step.

    `logprobs`: float32 [trie.num_tokens], natural logs, in the order of the trie's tokens. While `growing`: `lanes`, the
    runs of the step as (tokens, tokens of the trie before them, own blocks); those whose outputs are wanted come first
    and have `num_scored_rows` rows. `score_counts` [num_scored_rows] and `score_ids`: the tokens whose log-probabilities
    each of these rows gives.
    """

    def __init__(self, trie: CandidateTrie) -> None:
        self.trie = trie
        self.logprobs = np.zeros(trie.num_tokens, np.float32)
        self.growing = False
        self._prompt = 0  # its tokens
        self._root = Run(trie.root, None, [])
        self._open: list[
            Run
        ] = []  # computed, or lost, with others that are to leave them; the last one is next
        self._runs: list[Run] = []  # have their pages, not computed yet
        self._copies: list[tuple[int, int]] = []  # of partial pages, to be made before the step
        self._ready = 0  # tokens that can be computed without waiting for others
        self._step: list[tuple[Run, int]] = []
        self.lanes: list[tuple[list[int], int, list[int]]] = []
        self._want_first_tokens()

    def _want_first_tokens(self) -> None:
        """What the prompt's last row scores."""
        root = self.trie.root
        self.score_counts, self.score_ids, self._numbers = [len(root.heads)], root.heads, root.head_numbers

    @property
    def num_scored_rows(self) -> int:
        """Rows of the step whose outputs are wanted."""
        return len(self.score_counts)

    @property
    def num_blocks(self) -> int:
        """References to blocks that the tree holds."""
        return sum(len(run.blocks or ()) for run in self._all())

    def token_logprobs(self) -> list[list[float]]:
        """The log-probability of each token of each candidate."""
        return self.trie.by_candidate(self.logprobs)

    # ---- the prompt is there, or lost ---------------------------------------------------------------------

    def begin(self, sequence: Sequence, blocks: BlockManager) -> None:
        """Grow from the prompt that `sequence` has just computed."""
        self._prompt = sequence.num_tokens
        self._root.blocks = sequence.own_pages(self._prompt // blocks.block_size)
        if self._root.pending and self._root not in self._open:
            self._open.insert(0, self._root)
        self.growing = True
        self._ready = self._count_ready()
        self._publish(sequence)

    def release(self, sequence: Sequence, blocks: BlockManager) -> None:
        """Give all pages back, at the end or on a preemption; what has not been computed will be from the start."""
        if not self.growing:
            return
        self.growing = False
        for run in self._all():
            run.lose_pages(blocks)
        self._root.blocks = []
        for run in self._runs:
            self._put_back(run)
        self._runs, self._step, self._copies, self.lanes = [], [], [], []
        self._want_first_tokens()
        sequence.num_tokens = sequence.num_prompt_tokens
        sequence.wanted_from = sequence.num_prompt_tokens - 1

    def _put_back(self, run: Run) -> None:
        """A run that is not finished is to leave its base again, or still to be computed again."""
        base = run.base
        if run.scored:
            self._open.append(run)
            return
        assert base is not None
        if not base.pending:
            self._open.append(base)
        base.pending.append(run.head)
        base.pending.sort(key=lambda branch: -branch.start)

    # ---- what the next step computes ----------------------------------------------------------------------

    def may_grow(self, blocks: BlockManager) -> bool:
        """Make sure that something can be computed in the next step; False when there are too few blocks for it."""
        return bool(self._runs) or self._start_next(blocks, 0, must=True)

    def grow(self, sequence: Sequence, count: int, blocks: BlockManager, reserve: int) -> int:
        """Choose at most `count` tokens for the next step, leaving `reserve` blocks; returns how many are chosen."""
        step: list[tuple[Run, int]] = []
        rows = 0
        while rows < count and len(step) < MAX_LANES:
            if len(step) == len(self._runs) and not self._start_next(blocks, reserve, must=False):
                break
            run = self._runs[len(step)]
            step.append((run, min(run.left, count - rows)))
            rows += step[-1][1]
        step.sort(key=lambda item: item[0].scored)
        self._copy_pages(blocks)
        self._step = step
        self._describe(blocks.block_size)
        self._publish(sequence)
        return rows

    def _start_next(self, blocks: BlockManager, reserve: int, must: bool) -> bool:
        """Give the run that is next its pages; False when there is none, or no room for it."""
        if not self._open:
            return False
        base = self._open[-1]
        if base.blocks is None:  # lost
            if not self._has_room(blocks, 0, base.last_start, False, reserve, must):
                return False
            base.restart(self._fork(self._root, 0, base.last_start, False, blocks))
            self._runs.append(self._open.pop())
            return True
        head = base.pending[-1]
        last = len(base.pending) == 1 and base is not self._root
        if not self._has_room(blocks, head.start, head.run_rows, last, reserve, must):
            last = must and not last and self._may_take_over(base, head, blocks)
            if not last:
                return False
        base.pending.pop()
        self._runs.append(Run(head, base, self._fork(base, head.start, head.run_rows, last, blocks)))
        if not base.pending:
            self._open.pop()
        return True

    def _need(self, blocks: BlockManager, start: int, rows: int, last: bool) -> int:
        """Blocks that a run has to be given."""
        first, partial = divmod(self._prompt + start, blocks.block_size)
        return blocks.pool.blocks_for(self._prompt + start + rows) - first - (last and partial > 0)

    def _may_take_over(self, base: Run, head: Branch, blocks: BlockManager) -> bool:
        """Whether a run may, and can only, start in the pages of `base`, which then has to be computed again for the
        others.
        """
        if base is self._root or base.blocks is None:
            return False
        tokens = self._prompt % blocks.block_size + head.start
        unneeded = base.blocks[blocks.pool.blocks_for(tokens) :]
        room = blocks.cache.num_available_blocks + sum(not blocks.pool.is_shared(block) for block in unneeded)
        need = self._need(blocks, head.start, head.run_rows, True)
        if need > room:
            return False
        base.keep_pages(tokens, blocks)
        blocks.cache.make_room(need)
        self._ready += base.last_start - base.pending_rows + head.run_rows
        return True

    def _has_room(
        self, blocks: BlockManager, start: int, rows: int, last: bool, reserve: int, must: bool
    ) -> bool:
        """Whether a run can have its pages; if it must, runs other than the next to be left lose theirs."""
        need = self._need(blocks, start, rows, last)
        if must and need > blocks.cache.num_available_blocks:
            self._copy_pages(blocks)
            for run in self._open[:-1]:
                if run.blocks is not None and run is not self._root:
                    run.lose_pages(blocks)
                    self._ready += run.last_start - run.pending_rows
                    if need <= blocks.cache.num_available_blocks:
                        break
        return need + reserve <= blocks.cache.num_available_blocks and blocks.cache.make_room(need)

    def _fork(self, base: Run, start: int, rows: int, last: bool, blocks: BlockManager) -> list[int]:
        """The pages of a run that leaves `base` at `start`; the last one to leave takes them over."""
        pool, size = blocks.pool, blocks.block_size
        assert base.blocks is not None
        full, partial = divmod(self._prompt % size + start, size)
        if last:
            pages, base.blocks = base.blocks, None
        else:
            pages = base.blocks[:full]
            for block in pages:
                pool.retain(block)
            if partial:
                pages += pool.allocate()
                self._copies.append((base.blocks[full], pages[-1]))
        return pages + pool.allocate(pool.blocks_for(self._prompt % size + start + rows) - len(pages))

    def _copy_pages(self, blocks: BlockManager) -> None:
        if self._copies:
            pairs = np.array(self._copies, np.int32)
            blocks.pool.storage.copy_blocks(pairs[:, 0].copy(), pairs[:, 1].copy())
            self._copies = []

    def _describe(self, size: int) -> None:
        """Lay out the step that has been chosen: lanes, and the tokens whose log-probabilities are wanted."""
        self.lanes, self.score_counts, self.score_ids, self._numbers = [], [], [], []
        for run, count in self._step:
            done, end = run.done, run.done + count
            pages = -(-(self._prompt % size + run.start + end) // size)
            assert run.blocks is not None
            self.lanes.append((run.tokens[done:end], run.start + done, run.blocks[:pages]))
            if not run.scored:
                counts = run.counts[done:end]
                first, run.taken = run.taken, run.taken + sum(counts)
                self.score_counts += counts
                self.score_ids += run.ids[first : run.taken]
                self._numbers += run.numbers[first : run.taken]

    # ---- the step is done ---------------------------------------------------------------------------------

    def commit(self, sequence: Sequence, blocks: BlockManager) -> None:
        """Count the step's tokens as computed; runs that leave what is complete can start now."""
        pool, size = blocks.pool, blocks.block_size
        for run, count in self._step:
            begin = self._prompt % size + run.start + run.done
            run.done += count
            assert run.blocks is not None
            for index in range(begin // size, pool.blocks_for(begin + count)):
                pool.set_valid(run.blocks[index], min(begin + count - index * size, size))
            sequence.num_computed += count
            self._ready -= count
            if not run.left:
                self._finish(run, blocks)
        self._runs = [run for run in self._runs if run.left]
        self._step, self.lanes = [], []
        self._publish(sequence)

    def _finish(self, run: Run, blocks: BlockManager) -> None:
        """Keep of a computed run what those that leave it need."""
        run.scored = True
        if not run.pending:
            run.lose_pages(blocks)
            return
        run.keep_pages(self._prompt % blocks.block_size + run.last_start, blocks)
        self._open.append(run)
        self._ready += run.pending_rows

    def take(self, scores: FloatArray) -> None:
        """Take over the log-probabilities of the step's `score_ids`."""
        self.logprobs[self._numbers] = scores

    def _publish(self, sequence: Sequence) -> None:
        sequence.num_tokens = sequence.num_computed + self._ready

    # ---- bookkeeping --------------------------------------------------------------------------------------

    def _all(self) -> Iterator[Run]:
        """All that have pages of their own, or have lost them; the root's are the sequence's."""
        for run in (*self._open, *self._runs):
            if run is not self._root:
                yield run

    def _count_ready(self) -> int:
        waiting = (run.last_start if run.blocks is None else run.pending_rows for run in self._open)
        return sum(waiting) + sum(run.left for run in self._runs)

    def held_blocks(self) -> Iterator[int]:
        """Every block that the tree holds a reference to, as often as it does."""
        for run in self._all():
            yield from run.blocks or ()

    def remap(self, moves: Mapping[int, int]) -> None:
        """Follow the moves of a compaction."""
        for run in {self._root, *self._all()}:
            if run.blocks is not None:
                run.blocks = [moves.get(block, block) for block in run.blocks]

    def check_integrity(self, sequence: Sequence) -> None:
        """Assert that what is ready is counted, and that the sequence says so."""
        assert not self._copies, "a page has not been copied"
        assert all(run.pending for run in self._open), "a run that nobody will leave is open"
        if not self.growing:
            assert not self._runs, "a run goes on without its prompt"
            assert not any(run.blocks for run in self._open), "pages are held without the prompt's"
            return
        assert self._ready == self._count_ready(), "what is ready is miscounted"
        assert sequence.num_tokens == sequence.num_computed + self._ready, (
            "the sequence does not say what is ready"
        )
