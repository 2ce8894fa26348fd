"""The trie of many token sequences, so that what they have in common is computed once.

    "a b c", "a b d e", "f"        root -+- [a b] -+- [c]          a branch is a run of tokens without a fork
                                         |         +- [d e]
                                         +- [f]

Each token of the trie is predicted by the one before it. The last token of a leaf predicts nothing that is wanted, so it
is never computed: the work of a trie is fewer rows than it has tokens, and one row predicts the first tokens of all
branches that begin after it.

A **run** is what is computed in one go: a branch and, at each fork, the child that needs the most steps after it; the
other children are runs of their own, which need its keys and values. So the steps one after the other are as few as can be
(the Horton-Strahler number of the trie; Strahler, Trans. AGU 38, 1957): 1 + log2 of the number of candidates at most.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import pairwise

import numpy as np

from vglm.engine.request import FloatArray
from vglm.errors import RequestError

MAX_CANDIDATES = 65_536
MAX_CANDIDATE_TOKENS = 1 << 20  # of all candidates together


class Branch:
    """A run of tokens between two forks.

    `start`: tokens of the trie before it on its path. `first`: number of its first token among all tokens of the trie;
    the others follow it. `heads` and `head_numbers`: ids and numbers of the first tokens of its children. `next`: the
    child that a run goes on to, None at its end; `run_rows`: tokens to compute from here to the end of the run.
    """

    __slots__ = (
        "children", "first", "head_numbers", "heads", "next", "parent", "run_rows", "start", "tokens",
    )  # fmt: skip

    def __init__(self, tokens: list[int], start: int, first: int, parent: Branch | None) -> None:
        self.tokens = tokens
        self.start = start
        self.first = first
        self.parent = parent
        self.children: list[Branch] = []
        self.heads: list[int] = []
        self.head_numbers: list[int] = []
        self.next: Branch | None = None
        self.run_rows = 0

    @property
    def end(self) -> int:
        """Tokens on the path up to and with this branch."""
        return self.start + len(self.tokens)

    @property
    def num_rows(self) -> int:
        """Tokens that have to be computed."""
        return len(self.tokens) - (not self.children)

    def path(self) -> list[int]:
        """All tokens from the root to the end of this branch."""
        runs: list[list[int]] = []
        branch: Branch | None = self
        while branch is not None:
            runs.append(branch.tokens)
            branch = branch.parent
        return [token for run in reversed(runs) for token in run]

    def split(self, length: int) -> None:
        """Keep the first `length` tokens; the others become the only child, which takes the children over."""
        lower = Branch(self.tokens[length:], self.start + length, self.first + length, self)
        lower.children = self.children
        for child in lower.children:
            child.parent = lower
        self.tokens = self.tokens[:length]
        self.children = [lower]


class CandidateTrie:
    """The compressed trie of N token sequences, none of them empty; equal ones are one.

    `root` has no tokens. `num_tokens` counts the distinct tokens of the trie, `num_rows` those that have to be computed;
    `longest` is the length of the longest sequence.
    """

    def __init__(self, candidates: Seq[Seq[int]]) -> None:
        """Takes time and memory in proportion to all tokens together (and sorting the sequences)."""
        self.root = Branch([], 0, 0, None)
        self.num_tokens = 0
        self.longest = max(map(len, candidates), default=0)
        self._starts = np.zeros(len(candidates) + 1, np.int64)
        np.cumsum([len(candidate) for candidate in candidates], out=self._starts[1:])
        self._numbers = np.zeros(int(self._starts[-1]), np.int32)  # of each token of each candidate
        self._build([list(candidate) for candidate in candidates])
        self.num_rows = self._plan()

    def _build(self, candidates: list[list[int]]) -> None:
        """Add the candidates in sorted order: each one forks off the path of the one before it."""
        path = [self.root]
        before: list[int] = []
        numbers: list[int] = []
        for index in sorted(range(len(candidates)), key=candidates.__getitem__):
            tokens = candidates[index]
            common = common_prefix(before, tokens)
            if common < len(tokens):
                while path[-1].start >= common and len(path) > 1:
                    path.pop()
                if common < path[-1].end:
                    path[-1].split(common - path[-1].start)
                leaf = Branch(tokens[common:], common, self.num_tokens, path[-1])
                path[-1].children.append(leaf)
                path.append(leaf)
            new = self.num_tokens
            self.num_tokens += len(tokens) - common
            numbers = numbers[:common] + list(range(new, self.num_tokens))
            self._numbers[self._starts[index] : self._starts[index + 1]] = numbers
            before = tokens

    def _plan(self) -> int:
        """Divide the trie into runs; returns the tokens to compute."""
        steps: dict[Branch, int] = {}  # that a branch and what comes after it need, one after the other
        num_rows = 0
        for branch in reversed(self.branches()):
            branch.heads = [child.tokens[0] for child in branch.children]
            branch.head_numbers = [child.first for child in branch.children]
            if branch is self.root:
                break
            needs = sorted((steps[child] for child in branch.children), reverse=True)
            steps[branch] = max([int(branch.num_rows > 0), *needs[:1], *(n + 1 for n in needs[1:2] if n)])
            if needs and needs[0]:
                branch.next = max(branch.children, key=steps.__getitem__)
            branch.run_rows = branch.num_rows + (branch.next.run_rows if branch.next is not None else 0)
            num_rows += branch.num_rows
        return num_rows

    def branches(self) -> list[Branch]:
        """All branches, a parent before its children."""
        found = [self.root]
        for branch in found:
            found += branch.children
        return found

    def by_candidate(self, values: FloatArray) -> list[list[float]]:
        """A value per token of the trie as a list for each candidate, in the order in which they were given."""
        flat: list[float] = values[self._numbers].tolist()
        starts: list[int] = self._starts.tolist()
        return [flat[start:end] for start, end in pairwise(starts)]


def common_prefix(a: Seq[int], b: Seq[int]) -> int:
    """How many tokens two sequences have in common at their start."""
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length


def make_trie(candidates: Seq[Seq[int]], vocab_size: int, longest: int) -> CandidateTrie:
    """The trie of the candidates of a request. Raises RequestError when they are none, too many, longer than `longest`
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
    return CandidateTrie(candidates)
