"""The native core. Arrays are C-contiguous numpy arrays.

M token rows of S sequences, E page-table entries, R output rows. Wrong shapes raise
ValueError, wrong types TypeError, before anything is computed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

_Ints = npt.NDArray[np.int32]
_Floats = npt.NDArray[np.float32]
_Bytes = npt.NDArray[np.uint8]
_Seeds = npt.NDArray[np.uint64]
_Flags = npt.NDArray[np.bool_]
_Mask = npt.NDArray[np.uint32]
_Longs = npt.NDArray[np.int64]
_Doubles = npt.NDArray[np.float64]

def available_isas() -> list[str]:
    """Instruction sets that this build has and this machine runs, best first; the last is "portable"."""

class KVCache:
    """The memory of the block pool: one reserved mapping, committed as it is written.

    `dtype` is "bf16" or "int8" (a float32 scale per token and head); `block_size` is 16, 32, 64, 128 or 256
    tokens. Raises ValueError for other sizes, MemoryError when the address space is short.
    """

    def __init__(
        self, num_layers: int, num_kv_heads: int, head_dim: int, block_size: int, num_blocks: int, dtype: str
    ) -> None: ...
    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers."""
    @property
    def num_blocks(self) -> int:
        """Blocks of the mapping."""
    def copy_blocks(self, src: _Ints, dst: _Ints) -> None:
        """Copy block src[i] to dst[i], in all layers."""
    def read_blocks(self, blocks: _Ints, out: _Bytes) -> None:
        """Copy whole blocks into out [blocks, block_bytes]."""
    def write_blocks(self, blocks: _Ints, data: _Bytes) -> None:
        """Copy data [blocks, block_bytes], as `read_blocks` has given them, into blocks."""
    def release(self, blocks: _Ints) -> None:
        """Give the memory of these blocks back to the operating system; their content is lost."""
    def resident_bytes(self) -> int:
        """Bytes of the mapping that are in memory."""

class Model:
    """Weights, threads and kernels. `spec` and `weights`: see vglm.model.packing and vglm.engine.executor.

    The arrays in `weights` are not copied; they stay alive as long as the model.
    """

    def __init__(
        self, spec: Mapping[str, Any], weights: Mapping[str, Any], threads: int, isa: str
    ) -> None: ...
    @property
    def isa(self) -> str:
        """The instruction set that was asked for."""
    def workspace_bytes(self) -> int:
        """Bytes that forward passes have needed for intermediate results so far."""
    def forward(
        self,
        kv: KVCache,
        token_ids: _Ints,
        positions: _Ints,
        query_start: _Ints,
        table_start: _Ints,
        table_block: _Ints,
        table_valid: _Ints,
        output_rows: _Ints,
        kind: _Bytes,
        target: _Ints,
        num_logprobs: _Ints,
        temperature: _Floats,
        top_p: _Floats,
        top_k: _Ints,
        min_p: _Floats,
        repetition_penalty: _Floats,
        presence_penalty: _Floats,
        frequency_penalty: _Floats,
        seed: _Seeds,
        index: _Ints,
        bias_start: _Ints,
        bias_id: _Ints,
        bias_value: _Floats,
        history_start: _Ints,
        history: _Ints,
        history_prompt: _Ints,
        embed_rows: _Ints | None = None,
        embeds: _Floats | None = None,
        allowed_masks: _Mask | None = None,
        mask_rows: _Ints | None = None,
        before_sampling: Callable[[], object] | None = None,
        score_start: _Ints | None = None,
        score_ids: _Ints | None = None,
    ) -> tuple[_Ints, _Floats, _Ints, _Ints | None, _Floats | None, _Floats | None, _Floats | None]:
        """One step, as vglm.engine.step.StepBatch describes it; the GIL is released.

        Output row r may sample only the tokens that row mask_rows[r] of allowed_masks [G, ceil(vocab / 32)] has
        bits for (bit t % 32 of word t // 32); -1 allows all. `before_sampling` is called once after the layers,
        when there are output rows: until it returns, the masks may be filled. What it raises ends the step.

        An output row r of kind 3 samples nothing: it gives the log-probabilities of the tokens
        score_ids[score_start[r]:score_start[r + 1]]; score_start is [R + 1].

        Returns for the R output rows: token ids [R] (-1: logits not finite, -2: every token banned), their
        log-probabilities [R] and ranks [R], the best tokens [R, n] and their log-probabilities [R, n] or
        None, hidden states [R, hidden] or None, and log-probabilities of the scored tokens, as long as
        score_ids, or None.
        """
    def logits(
        self,
        kv: KVCache,
        token_ids: _Ints,
        positions: _Ints,
        query_start: _Ints,
        table_start: _Ints,
        table_block: _Ints,
        table_valid: _Ints,
        output_rows: _Ints,
        embed_rows: _Ints | None = None,
        embeds: _Floats | None = None,
    ) -> _Floats:
        """The same step without sampling: logits [R, vocab]."""

def sample(
    logits: _Floats,
    *,
    temperature: _Floats | None = None,
    top_p: _Floats | None = None,
    min_p: _Floats | None = None,
    top_k: _Ints | None = None,
    repetition_penalty: _Floats | None = None,
    presence_penalty: _Floats | None = None,
    frequency_penalty: _Floats | None = None,
    seed: _Seeds | None = None,
    step: _Seeds | None = None,
    prompt_tokens: _Ints | None = None,
    prompt_start: _Ints | None = None,
    output_tokens: _Ints | None = None,
    output_start: _Ints | None = None,
    bias_tokens: _Ints | None = None,
    bias_values: _Floats | None = None,
    bias_start: _Ints | None = None,
    allowed_mask: _Mask | None = None,
    num_logprobs: _Ints | None = None,
    target: _Ints | None = None,
    need_logprob: _Flags | None = None,
) -> tuple[_Ints, _Floats, _Ints, _Ints, _Floats]:
    """Sample a token from each row of logits [rows, vocab], which are left as they are.

    Other arguments have a value per row, or are flat lists with row starts [rows + 1]. Returns tokens,
    log-probabilities and ranks [rows], best tokens and their log-probabilities [rows, n].
    """

def matmul(
    isa: str,
    type: str,
    n: int,
    k: int,
    data: _Bytes,
    scale: _Floats | None,
    bias: _Floats | None,
    x: _Floats,
    out: _Floats,
    store: str = "f32",
    threads: int = 1,
    repeats: int = 1,
) -> float:
    """out [M, n] = x [M, k] times packed weights; returns the seconds of the best repetition.

    `store`: "f32"; "add", added to `out`; "swiglu", out [M, n / 2] = silu(gate) * up.
    """

def activations(isa: str, type: str, x: _Floats, norm: _Floats | None, eps: float, out: _Floats) -> None:
    """x [M, k] as activations of weights of `type` see it, after RMSNorm if eps >= 0; into out [M, k]."""

def attention(
    isa: str,
    q: _Floats,
    k: _Floats,
    v: _Floats,
    limit: _Ints,
    scale: float,
    int8: bool,
    out: _Floats,
    repeats: int = 1,
) -> float:
    """Attention of q [rows, d] over k, v [slots, d], row i over the first limit[i] slots.

    Returns the seconds of the best repetition.
    """

def peak_ops(isa: str, type: str, threads: int = 1, seconds: float = 0.2) -> float:
    """Operations per second of dot products that stay in registers; a multiply and an add are two."""

def read_bandwidth(isa: str, threads: int = 1, megabytes: int = 256, repeats: int = 5) -> float:
    """Bytes per second of reading memory, the best of `repeats`."""

class GraphWalk:
    """Walks over a directed multigraph of N nodes and E edges, each within bounded work; the GIL is released.

    `source`, `target`, `relation` [E] are sorted by (source, relation, target); `in_edge` [E] numbers the edges by
    (target, relation, source); `out_start` and `in_start` [N + 1] say where the edges of a node are in each order.
    The arrays are kept, not copied. Raises ValueError for arrays that do not fit together.

    Masks are uint8 [relations] and [types]. `degree_cap` bounds how many edges of a node are followed, `max_work`
    how many edges are looked at in all.
    """

    def __init__(
        self,
        out_start: _Longs,
        in_start: _Longs,
        source: _Ints,
        target: _Ints,
        relation: _Ints,
        in_edge: _Ints,
        node_type: _Ints,
        num_relations: int,
        num_types: int,
    ) -> None: ...
    def pagerank(
        self,
        seeds: _Ints,
        weights: _Doubles,
        restart: float,
        epsilon: float,
        max_hops: int,
        degree_cap: int,
        max_work: int,
        relations: _Bytes | None = None,
        types: _Bytes | None = None,
    ) -> tuple[_Ints, _Ints, _Doubles, int, int, bool]:
        """Personalised PageRank by forward push: nodes ascending, their hops and scores, the edges looked at and
        passed over, and whether the walk came to its end."""
    def neighborhood(
        self,
        seeds: _Ints,
        hops: int,
        max_nodes: int,
        degree_cap: int,
        max_work: int,
        relations: _Bytes | None = None,
        types: _Bytes | None = None,
    ) -> tuple[_Ints, _Ints, _Doubles, int, int, bool]:
        """The nodes at most `hops` away from the seeds; as `pagerank`, with scores of 0."""
    def shortest_paths(
        self,
        source: int,
        target: int,
        max_length: int,
        count: int,
        relation_cost: _Doubles,
        degree_cap: int,
        max_work: int,
        relations: _Bytes | None = None,
        types: _Bytes | None = None,
    ) -> tuple[list[tuple[_Ints, float]], bool]:
        """The cheapest of the shortest paths, each with its cost, and whether the search came to its end."""
    def edges_among(self, nodes: _Ints, max_edges: int, relations: _Bytes | None = None) -> tuple[_Ints, int]:
        """The edges whose ends are both in `nodes` (ascending): the first `max_edges`, and how many there are."""

def json_escaped(data: _Bytes, offsets: _Longs) -> tuple[_Bytes, _Longs] | None:
    """Strings as they stand between the quotes of a JSON string; None if none of them changes."""

def contains_any(data: _Bytes, flags: _Bytes) -> bool:
    """Whether some byte of the data is flagged in `flags` [256]."""

class Propagation:
    """Relational message passing over the E edges of a graph of N nodes, in CSR form by target; the GIL is released.

    The edges into node v are `start[v]` to `start[v + 1]`; `source`, `relation` [E] belong to them. The arrays are kept, not
    copied. Raises ValueError for arrays that do not fit together. B is a batch, d a width, R `num_relations`.
    """

    def __init__(self, start: _Longs, source: _Ints, relation: _Ints, num_relations: int) -> None: ...
    def aggregate(self, states: _Floats, weights: _Floats, out: _Floats) -> None:
        """out[b, v] += sum over the edges (u, r, v) of states[b, u] * weights[b, r]: [B, N, d], [B, R, d] to [B, N, d]."""
    def weight_gradient(self, states: _Floats, gradient: _Floats, out: _Floats) -> None:
        """out[b, r] += sum over the edges (u, r, v) of states[b, u] * gradient[b, v]: [B, N, d] twice to [B, R, d]."""

def mix_messages(
    isa: str,
    states: _Floats,
    received: _Floats,
    mean: _Floats,
    mix: _Floats,
    bias: _Floats,
    gain: _Floats,
    shift: _Floats,
    epsilon: float,
) -> None:
    """states [N, d] += relu(norm([states, mean * received, sqrt(mean) * received] @ mix + bias) * gain + shift).

    `received` [N, d], `mean` [N], `mix` [3 d, d], the others [d]; d is a multiple of 16, at most 256. The rows of `mix`, and
    `bias`, must sum to 0: the norm divides by the root mean square alone.
    """

def score_states(
    isa: str,
    states: _Floats,
    weight: _Floats,
    bias: _Floats,
    out: _Floats,
    out_bias: float,
    scores: _Floats,
) -> None:
    """scores [N] = relu(states @ weight + bias) @ out + out_bias; `weight` [d, hidden], multiples of 16."""

class StringIndex:
    """The distinct strings of a column (UTF-8 `data`, `offsets` [N + 1]) in the order of their bytes: groups of items.

    Empty strings, and items with a flag in `left_out` [N], are in no group. The arrays are kept, not copied.
    """

    def __init__(self, data: _Bytes, offsets: _Longs, left_out: _Bytes | None = None) -> None: ...
    def updated(
        self,
        old_key_data: _Bytes,
        old_key_offsets: _Longs,
        data: _Bytes,
        offsets: _Longs,
        key_data: _Bytes,
        key_offsets: _Longs,
        left_out: _Bytes | None = None,
    ) -> StringIndex:
        """The index of another column, of which only strings that are new are sorted. Keys ascend, one for each
        string; equal keys are the same item."""
    @property
    def num_groups(self) -> int:
        """Distinct strings."""
    @property
    def sorted_afresh(self) -> int:
        """Strings that were sorted when this index was made."""
    @property
    def nbytes(self) -> int:
        """Bytes that the index itself occupies."""
    def group_of(self, item: int) -> int:
        """The group of an item, -1 if it is in none. Raises IndexError."""
    def items(self, group: int) -> _Ints:
        """The items of a group, ascending. Raises IndexError."""
    def text(self, group: int) -> bytes:
        """The string of a group. Raises IndexError."""
    def find(self, text: bytes) -> int:
        """The group of a string, or -1."""
    def items_without(self, excluded: bytes) -> _Ints | None:
        """The items whose strings have none of these bytes, ascending; None: no string has any."""

class NameList:
    """All names of an index, or those of some items (ascending)."""

    def __init__(self, index: StringIndex, items: _Ints | None = None) -> None: ...
    def __len__(self) -> int: ...
    def __contains__(self, item: int) -> bool: ...

class TokenTrie:
    """The tokens of a vocabulary as a trie over their bytes: token ids[i] spells string i; `ends` end a text."""

    def __init__(self, data: _Bytes, offsets: _Longs, ids: _Ints, ends: _Ints, vocab_size: int) -> None: ...
    @property
    def num_nodes(self) -> int:
        """Nodes of the trie."""
    def spellable(self, data: _Bytes, offsets: _Longs) -> _Bytes:
        """For each string 1 if each of its characters is a token, or made of tokens of one byte, uint8 [N]."""

class Adjacency:
    """Edges by (source, relation, target); `in_edge` numbers them by (target, relation, source). Arrays are kept."""

    def __init__(
        self,
        out_start: _Longs,
        source: _Ints,
        target: _Ints,
        relation: _Ints,
        num_relations: int,
        in_start: _Longs | None = None,
        in_edge: _Ints | None = None,
    ) -> None: ...

class WalkSpec:
    """Walks of min_hops to max_hops (at most 30) edges. `relations` [relations]: which may be taken; `ends` [N]: where a
    walk may end; None: all."""

    def __init__(
        self,
        edges: Adjacency,
        nodes: StringIndex,
        relation_names: StringIndex,
        min_hops: int,
        max_hops: int,
        inverse: bool = False,
        relations: _Bytes | None = None,
        ends: _Bytes | None = None,
    ) -> None: ...
    def starts(self, edges: Adjacency, nodes: _Ints | None = None) -> _Ints:
        """Those of the nodes (None: all) where such a walk may start."""

class TextMachine:
    """A program over bytes, int32 [instructions, 5], as native/text_machine.hpp describes it; `classes` uint8 [K, 256].

    Raises ValueError for a program that is none.
    """

    def __init__(
        self,
        tokens: TokenTrie,
        program: _Ints,
        lists: tuple[NameList, ...],
        classes: _Bytes,
        edges: Adjacency,
        walks: tuple[WalkSpec, ...],
    ) -> None: ...
    def read(self, text: bytes) -> tuple[int, bool, list[tuple[int, int, int]]]:
        """How many bytes could be read, whether the text may end there, and the names in it: (instruction, group, end)."""
    @property
    def cached_bytes(self) -> int:
        """Bytes of the masks and lists that are kept."""

class TextMatcher:
    """A text that is being generated after a program."""

    def __init__(self, machine: TextMachine) -> None: ...
    @property
    def finished(self) -> bool:
        """Whether nothing can follow."""
    def accept(self, token: int) -> None:
        """Take a token over. Raises ValueError for one that is not allowed."""
    def forced(self) -> bytes:
        """The bytes that must come next."""
    def take(self, tokens: _Ints) -> int:
        """Take over those of the tokens, from the first on, that spell the forced bytes and begin where no token could
        begin that goes on beyond them; returns how many."""
    @staticmethod
    def fill_masks(matchers: list[TextMatcher], masks: _Mask) -> None:
        """Write the mask of each matcher, uint32 [len(matchers), ceil(vocab / 32)]; the GIL is released."""
