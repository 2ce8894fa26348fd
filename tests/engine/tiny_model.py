"""A small real transformer in numpy with a paged KV cache, as the engine's executor in tests.

It reads exactly the pages and valid counts that a step gives it. Memory that was never written, or was given
back, is NaN, so a wrong page table does not go unnoticed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vglm.engine.constraint import fill_masks
from vglm.engine.step import RowKind, SampleRows, StepBatch, StepResult

Array = np.ndarray[Any, Any]

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTER, VOCAB = 2, 32, 4, 2, 8, 48, 97


class TinyStorage:
    """K and V of every block, float64 [2, layers, blocks, block size, KV heads, head dim]."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.kv = np.full((2, LAYERS, num_blocks, block_size, KV_HEADS, HEAD_DIM), np.nan)
        self.num_copied = 0

    def copy_blocks(self, src: Array, dst: Array) -> None:
        self.kv[:, :, dst] = self.kv[:, :, src]
        self.num_copied += len(src)

    def release(self, blocks: Array) -> None:
        self.kv[:, :, blocks] = np.nan

    @property
    def block_bytes(self) -> int:
        return self.kv[:, :, 0].nbytes

    def read_blocks(self, blocks: Array, out: Array) -> None:
        out[...] = np.moveaxis(self.kv[:, :, blocks], 2, 0).reshape(len(blocks), -1).view(np.uint8)

    def write_blocks(self, blocks: Array, data: Array) -> None:
        values = data.view(np.float64).reshape(len(blocks), 2, LAYERS, self.block_size, KV_HEADS, HEAD_DIM)
        self.kv[:, :, blocks] = np.moveaxis(values, 0, 2)


class TinyModel:
    """A llama-like model with random weights: RMS norms, RoPE, grouped-query attention, SwiGLU."""

    def __init__(self, storage: TinyStorage, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def weight(*shape: int) -> Array:
            drawn: Array = rng.standard_normal(shape) / np.sqrt(shape[-1])
            return drawn

        self.storage = storage
        self.embed = rng.standard_normal((VOCAB, HIDDEN))
        self.layers = [
            {
                "q": weight(HEADS * HEAD_DIM, HIDDEN) * 2,
                "k": weight(KV_HEADS * HEAD_DIM, HIDDEN) * 2,
                "v": weight(KV_HEADS * HEAD_DIM, HIDDEN),
                "o": weight(HIDDEN, HEADS * HEAD_DIM),
                "gate": weight(INTER, HIDDEN),
                "up": weight(INTER, HIDDEN),
                "down": weight(HIDDEN, INTER),
            }
            for _ in range(LAYERS)
        ]
        self.head = weight(VOCAB, HIDDEN) * 4
        self.tokens_computed = 0
        self.num_steps = 0
        self.batches: list[tuple[int, int]] = []  # (sequences, tokens) of every step

    def execute(self, batch: StepBatch) -> StepResult:
        self.num_steps += 1
        self.tokens_computed += len(batch.token_ids)
        self.batches.append((batch.num_sequences, len(batch.token_ids)))
        hidden = norm(self._forward(batch))[batch.output_rows]
        assert not np.isnan(hidden).any(), "a sequence has read KV that nobody wrote"
        return self._answer(batch, hidden)

    def _forward(self, batch: StepBatch) -> Array:
        x = self.embed[batch.token_ids]
        if batch.embed_rows is not None:
            x[batch.embed_rows] = batch.embeds
        slots = [self._slots(batch, s) for s in range(batch.num_sequences)]
        for index, w in enumerate(self.layers):
            h = norm(x)
            q = rope((h @ w["q"].T).reshape(-1, HEADS, HEAD_DIM), batch.positions)
            k = rope((h @ w["k"].T).reshape(-1, KV_HEADS, HEAD_DIM), batch.positions)
            v = (h @ w["v"].T).reshape(-1, KV_HEADS, HEAD_DIM)
            out = np.empty_like(q)
            for s, (blocks, offsets) in enumerate(slots):
                rows = slice(batch.query_start[s], batch.query_start[s + 1])
                n = rows.stop - rows.start
                self.storage.kv[0, index, blocks[-n:], offsets[-n:]] = k[rows]
                self.storage.kv[1, index, blocks[-n:], offsets[-n:]] = v[rows]
            for s, (blocks, offsets) in enumerate(slots):
                rows = slice(batch.query_start[s], batch.query_start[s + 1])
                keys, values = self.storage.kv[:, index, blocks, offsets]
                out[rows] = attend(q[rows], keys, values)
            x = x + out.reshape(len(x), -1) @ w["o"].T
            h = norm(x)
            gate = h @ w["gate"].T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ w["up"].T)) @ w["down"].T
        return x

    def _slots(self, batch: StepBatch, s: int) -> tuple[Array, Array]:
        """(block, offset) of every valid slot of sequence s, in table order."""
        entries = slice(batch.table_start[s], batch.table_start[s + 1])
        valid = batch.table_valid[entries]
        assert (valid > 0).all(), "a page-table entry has no valid token"
        assert (valid <= self.storage.block_size).all(), "a page-table entry claims more than a block"
        offsets = np.concatenate([np.arange(v) for v in valid])
        return np.repeat(batch.table_block[entries], valid), offsets

    def _answer(self, batch: StepBatch, hidden: Array) -> StepResult:
        rows = batch.sample_rows
        logits = hidden @ self.head.T
        logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True) if len(logits) else logits
        masks = np.zeros((len(rows.constraints), -(-VOCAB // 32)), np.uint32)
        fill_masks(rows.constraints, masks)
        tokens = np.array(
            [
                sample(batch, r, logits[r], masks)
                if rows.kind[r] == RowKind.SAMPLE
                else max(0, int(rows.target[r]))
                for r in range(len(rows))
            ],
            np.int32,
        )
        own = logprobs[np.arange(len(rows)), tokens]
        top = np.argsort(-logprobs, axis=-1, kind="stable")[:, : max([0, *rows.num_logprobs])]
        return StepResult(
            tokens,
            own.astype(np.float32),
            1 + (logprobs > own[:, None]).sum(axis=-1, dtype=np.int32),
            top.astype(np.int32),
            np.take_along_axis(logprobs, top, axis=-1).astype(np.float32),
            hidden.astype(np.float32),
            None if rows.score_ids is None else scores(rows, logprobs),
        )


def scores(rows: SampleRows, logprobs: Array) -> Array:
    """What the rows that score several tokens say of them."""
    assert rows.score_start is not None
    each = np.repeat(np.arange(len(rows)), np.diff(rows.score_start))
    assert (rows.kind[each] == RowKind.SCORES).all()
    found: Array = logprobs[each, rows.score_ids].astype(np.float32)
    return found


def norm(x: Array) -> Array:
    scaled: Array = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)
    return scaled


def rope(x: Array, positions: Array) -> Array:
    half = HEAD_DIM // 2
    angle = positions[:, None, None] * 1000.0 ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def attend(q: Array, keys: Array, values: Array) -> Array:
    """The last len(q) of the keys are the queries' own: causal among them, all keys before them visible."""
    keys, values = (np.repeat(x, HEADS // KV_HEADS, axis=1) for x in (keys, values))
    scores = np.einsum("qhd,khd->hqk", q, keys) / np.sqrt(HEAD_DIM)
    visible = len(keys) - len(q) + np.arange(len(q))
    scores = np.where(np.arange(len(keys)) > visible[:, None], -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    out: Array = np.einsum("hqk,khd->qhd", weights / weights.sum(axis=-1, keepdims=True), values)
    return out


def sample(batch: StepBatch, r: int, logits: Array, masks: Array) -> int:
    """One token of row r: bias, mask, penalties and temperature, random numbers counted by (seed, index); -2 when
    none is allowed.
    """
    rows = batch.sample_rows
    logits = logits.copy()
    bias = slice(rows.bias_start[r], rows.bias_start[r + 1])
    np.add.at(logits, rows.bias_id[bias], rows.bias_value[bias])
    if rows.mask_row is not None and rows.mask_row[r] >= 0:
        bits = np.unpackbits(masks[rows.mask_row[r]].view(np.uint8), bitorder="little")[:VOCAB]
        logits[bits == 0] = -np.inf
    if logits.max() == -np.inf:
        return -2
    history = rows.history[rows.history_start[r] : rows.history_start[r + 1]]
    seen = np.unique(history)
    penalty = rows.repetition_penalty[r]
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    output = np.bincount(history[rows.history_prompt[r] :], minlength=VOCAB)
    logits -= rows.presence_penalty[r] * (output > 0) + rows.frequency_penalty[r] * output
    if rows.temperature[r] < 1e-5:
        return int(logits.argmax())
    random = np.random.Generator(np.random.Philox(key=np.array([rows.seed[r], rows.index[r]], np.uint64)))
    return int((logits / rows.temperature[r] + random.gumbel(size=VOCAB)).argmax())
