"""Exact scores of many candidates after one prompt, each prefix that they share computed once.

A TREE request is one sequence to the scheduler. First it computes its prompt like any other. Then it **grows**: the
branches of its trie (engine/trie.py) run as sequences of their own in the batch, several hundred in a step, each with a
page table as if its path from the prompt on were the whole request:

    [the context's pages][the prompt's full pages][own pages: the partial last page of the prompt, and the path]

So a candidate gets the bits that it gets alone. Full pages of an ancestor are shared, its partial page is copied; the
last child to start goes on in its parent's pages. A branch runs when its parent is computed, depth first: the branches
whose parents came last go first, which keeps few parents waiting for their children. Its pages go back when its last
child has started. `num_tokens` of the sequence counts what can run at the moment, so that the scheduler hands out the
step's tokens as it does to prompts.

When memory is short, the parents that are needed last lose their pages and are computed again, from the prompt on, when
their turn comes; a preempted request loses all of them. Scores that have been computed stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq

import numpy as np

from vglm.engine.block_manager import BlockManager
from vglm.engine.request import FloatArray, Sequence
from vglm.engine.trie import Branch, CandidateTrie
from vglm.errors import RequestError

MAX_LANES = 512  # branches in a step: each has a page of its own
MAX_CANDIDATES = 65_536
MAX_CANDIDATE_TOKENS = 1 << 20  # of all candidates together


class Limb:
    """A branch that is being computed, or whose children wait for it.

    `tokens` are computed from `start` tokens after the prompt on; `done` of them are. `pending`: children that have not
    started. `blocks`: its own pages, a reference each; None when it has lost them. `scored`: its outputs are known.
    """

    __slots__ = ("blocks", "branch", "done", "pending", "scored", "start", "tokens")

    def __init__(self, branch: Branch, tokens: list[int], start: int, blocks: list[int] | None) -> None:
        self.branch = branch
        self.tokens = tokens
        self.start = start
        self.blocks = blocks
        self.done = 0
        self.scored = False
        self.pending = [child for child in reversed(branch.children) if child.num_rows]

    @property
    def left(self) -> int:
        """Tokens that are still to be computed."""
        return len(self.tokens) - self.done

    @property
    def pending_rows(self) -> int:
        """Tokens of the children that have not started."""
        return sum(child.num_rows for child in self.pending)


class Tree:
    """What a TREE request has computed, is computing, and wants from the next step.

    `logprobs`: float32 [trie.num_tokens], natural logs, in the order of the trie's tokens. While `growing`: `lanes`, the
    branches of the step as (tokens, tokens of the trie before them, own blocks); those of which outputs are wanted come
    first and have `num_scored_rows` rows. `score_counts` [num_scored_rows] and `score_ids`: the tokens whose
    log-probabilities each of these rows gives.
    """

    def __init__(self, trie: CandidateTrie) -> None:
        self.trie = trie
        self.logprobs = np.zeros(trie.num_tokens, np.float32)
        self.growing = False
        self.lanes: list[tuple[list[int], int, list[int]]] = []
        self.score_counts: list[int] = [len(trie.root.heads)]  # of the prompt's last row
        self.score_ids: list[int] = trie.root.heads
        self._numbers: list[int] = trie.root.head_numbers  # of the tokens that are scored
        self._root = Limb(trie.root, [], 0, [])
        self._open: list[Limb] = []  # with pending children; the last one is next
        self._runs: list[Limb] = []  # have their pages, not computed yet
        self._step: list[tuple[Limb, int]] = []
        self._copies: list[tuple[int, int]] = []  # of partial pages, to be made before the step
        self._ready = 0  # tokens that can be computed without waiting for others
        self._prompt = 0

    @property
    def num_scored_rows(self) -> int:
        """Rows of the step whose outputs are wanted."""
        return len(self.score_counts)

    @property
    def num_blocks(self) -> int:
        """References to blocks that the tree holds."""
        return sum(len(limb.blocks or ()) for limb in self._limbs())

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
        for limb in self._limbs():
            for block in limb.blocks or ():
                blocks.pool.release(block)
            limb.blocks = None
        self._give_up_runs()
        self._runs, self._step, self._copies, self.lanes = [], [], [], []
        root = self.trie.root
        self.score_counts, self.score_ids, self._numbers = [len(root.heads)], root.heads, root.head_numbers
        self._root.blocks = []
        sequence.num_tokens = sequence.num_prompt_tokens
        sequence.wanted_from = sequence.num_prompt_tokens - 1

    def _give_up_runs(self) -> None:
        """A run that is not finished is its parent's to start again, or still to be computed again."""
        limbs = {limb.branch: limb for limb in self._open} | {self.trie.root: self._root}
        for run in self._runs:
            parent = run.branch.parent
            assert parent is not None
            if run.scored:
                self._open.append(run)
                continue
            if parent not in limbs:
                limbs[parent] = limb = Limb(parent, [], 0, None)
                limb.pending, limb.scored = [], True
                self._open.append(limb)
            limbs[parent].pending.append(run.branch)

    # ---- what the next step computes ----------------------------------------------------------------------

    def may_grow(self, blocks: BlockManager) -> bool:
        """Make sure that something can be computed in the next step; False when there are too few blocks for it."""
        return bool(self._runs) or self._start_next(blocks, 0, must=True)

    def grow(self, sequence: Sequence, count: int, blocks: BlockManager, reserve: int) -> int:
        """Choose at most `count` tokens for the next step, leaving `reserve` blocks; returns how many are chosen."""
        step: list[tuple[Limb, int]] = []
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
        """Give the branch that is next its pages; False when there is none, or no room for it."""
        if not self._open:
            return False
        limb = self._open[-1]
        if limb.blocks is None:  # lost: to be computed again before its children
            if not self._has_room(blocks, limb.branch.end, 0, False, reserve, must, limb):
                return False
            limb.tokens, limb.start, limb.done = limb.branch.path(), 0, 0
            limb.blocks = self._fork(self._root, 0, limb.branch.end, False, blocks)
            self._runs.append(self._open.pop())
            return True
        child = limb.pending[-1]
        rows, last = child.num_rows, limb is not self._root and len(limb.pending) == 1
        if not self._has_room(blocks, rows, child.start, last, reserve, must, limb):
            if not must or last or limb is self._root:
                return False
            last = True  # the only way: it takes the parent's pages, which the next child has computed again
            if not self._has_room(blocks, rows, child.start, last, 0, must, limb):
                return False
            self._ready += limb.branch.end - limb.pending_rows + rows
        limb.pending.pop()
        self._runs.append(
            Limb(child, child.tokens[:rows], child.start, self._fork(limb, child.start, rows, last, blocks))
        )
        if not limb.pending:
            self._open.pop()
        return True

    def _has_room(
        self, blocks: BlockManager, rows: int, start: int, last: bool, reserve: int, must: bool, keep: Limb
    ) -> bool:
        """Whether a run can have its pages; if it must, parents that are needed later than `keep` lose theirs."""
        first, partial = divmod(self._prompt + start, blocks.block_size)
        need = blocks.pool.blocks_for(self._prompt + start + rows) - first - (last and partial > 0)
        if need + reserve <= blocks.cache.num_available_blocks:
            return blocks.cache.make_room(need)
        if must:
            self._copy_pages(blocks)
            for limb in self._open:
                if limb.blocks is not None and limb is not keep and limb is not self._root:
                    self._lose(limb, blocks)
                    if need <= blocks.cache.num_available_blocks:
                        return blocks.cache.make_room(need)
        return False

    def _lose(self, limb: Limb, blocks: BlockManager) -> None:
        for block in limb.blocks or ():
            blocks.pool.release(block)
        limb.blocks = None
        self._ready += limb.branch.end - limb.pending_rows

    def _fork(self, base: Limb, start: int, rows: int, last: bool, blocks: BlockManager) -> list[int]:
        """The pages of a run that begins where `base` ends; the last one takes the pages of `base` over."""
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
        offset = self._prompt % size
        self.lanes, self.score_counts, self.score_ids, self._numbers = [], [], [], []
        for run, count in self._step:
            done, end = run.done, run.done + count
            pages = -(-(offset + run.start + end) // size)
            assert run.blocks is not None
            self.lanes.append((run.tokens[done:end], run.start + done, run.blocks[:pages]))
            if run.scored:
                continue
            branch = run.branch
            inner = min(end, len(branch.tokens) - 1)  # rows that predict the next token of the branch
            self.score_counts += [1] * (inner - done)
            self.score_ids += branch.tokens[done + 1 : inner + 1]
            self._numbers += range(branch.first + done + 1, branch.first + inner + 1)
            if end > inner:
                self.score_counts.append(len(branch.heads))
                self.score_ids += branch.heads
                self._numbers += branch.head_numbers

    # ---- the step is done ---------------------------------------------------------------------------------

    def commit(self, sequence: Sequence, blocks: BlockManager) -> None:
        """Count the step's tokens as computed; children of what is complete can run now."""
        pool, size = blocks.pool, blocks.block_size
        offset = self._prompt % size
        for run, count in self._step:
            begin = offset + run.start + run.done
            run.done += count
            assert run.blocks is not None
            for index in range(begin // size, pool.blocks_for(begin + count)):
                pool.set_valid(run.blocks[index], min(begin + count - index * size, size))
            sequence.num_computed += count
            self._ready -= count
            if run.left:
                continue
            run.scored = True
            if run.pending:
                self._open.append(run)
                self._ready += run.pending_rows
                continue
            for block in run.blocks:
                pool.release(block)
        self._runs = [run for run in self._runs if run.left]
        self._step, self.lanes = [], []
        self._publish(sequence)

    def take(self, scores: FloatArray) -> None:
        """Take over the log-probabilities of the step's `score_ids`."""
        self.logprobs[self._numbers] = scores

    def _publish(self, sequence: Sequence) -> None:
        sequence.num_tokens = sequence.num_computed + self._ready

    # ---- bookkeeping --------------------------------------------------------------------------------------

    def _limbs(self) -> Iterator[Limb]:
        """All that have pages of their own, or have lost them; the root's are the sequence's."""
        for limb in (*self._open, *self._runs):
            if limb is not self._root:
                yield limb

    def _count_ready(self) -> int:
        lost = (limb.branch.end if limb.blocks is None else limb.pending_rows for limb in self._open)
        return sum(lost) + sum(run.left for run in self._runs)

    def held_blocks(self) -> Iterator[int]:
        """Every block that the tree holds a reference to, as often as it does."""
        for limb in self._limbs():
            yield from limb.blocks or ()

    def remap(self, moves: Mapping[int, int]) -> None:
        """Follow the moves of a compaction."""
        for limb in {self._root, *self._limbs()}:
            if limb.blocks is not None:
                limb.blocks = [moves.get(block, block) for block in limb.blocks]

    def check_integrity(self, sequence: Sequence) -> None:
        """Assert that what is ready is counted, and that the sequence says so."""
        assert not self._copies, "a page has not been copied"
        if not self.growing:
            assert not self._runs, "a branch runs without its prompt"
            assert not any(limb.blocks for limb in self._open), "pages are held without the prompt's"
            return
        assert self._ready == self._count_ready(), "what is ready is miscounted"
        assert sequence.num_tokens == sequence.num_computed + self._ready, (
            "the sequence does not say what is ready"
        )
        assert all(limb.pending for limb in self._open), "a limb without children to start is open"


def make_tree(candidates: Seq[Seq[int]], vocab_size: int, longest: int) -> Tree:
    """The tree of the candidates of a request. Raises RequestError when they are none, too many, longer than `longest`
    tokens, or no token ids.
    """
    if not candidates:
        raise RequestError("there are no candidates; give at least one", "candidates")
    if len(candidates) > MAX_CANDIDATES:
        raise RequestError(
            f"there are {len(candidates)} candidates; at most {MAX_CANDIDATES} can be scored at once",
            "candidates",
        )
    lengths = [len(candidate) for candidate in candidates]
    if not all(lengths):
        raise RequestError(f"candidate {lengths.index(0)} is empty; give at least one token", "candidates")
    if max(lengths) > longest:
        index = lengths.index(max(lengths))
        raise RequestError(
            f"candidate {index} has {lengths[index]} tokens; max_model_len leaves room for {max(0, longest)} after "
            "this prompt",
            "candidates",
        )
    if sum(lengths) > MAX_CANDIDATE_TOKENS:
        raise RequestError(
            f"the candidates have {sum(lengths)} tokens; at most {MAX_CANDIDATE_TOKENS} can be scored at once",
            "candidates",
        )
    flat = np.array([token for candidate in candidates for token in candidate])
    if flat.dtype.kind not in "iu" or flat.ndim != 1:
        raise RequestError("candidates must be lists of whole numbers, the token ids", "candidates")
    if (wrong := np.flatnonzero((flat < 0) | (flat >= vocab_size))).size:
        index = int(np.searchsorted(np.cumsum(lengths), wrong[0], side="right"))
        raise RequestError(
            f"candidate {index} has token id {flat[wrong[0]]}; the vocabulary has ids 0 to {vocab_size - 1}",
            "candidates",
        )
    return Tree(CandidateTrie(candidates))
