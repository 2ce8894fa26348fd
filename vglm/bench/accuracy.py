"""What a dtype costs in quality: KL divergence and perplexity against the fp32 reference, on real text."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vglm.bench.report import Report, Table
from vglm.bench.workload import ontology_text
from vglm.console import progress_bar
from vglm.engine.executor import NativeExecutor
from vglm.engine.step import SampleRows, StepBatch
from vglm.errors import ConfigError
from vglm.model.checkpoint import open_checkpoint
from vglm.model.pull import resolve_model
from vglm.model.reference import Reference
from vglm.model.weight_cache import load_packed
from vglm.options import choose_isa

DEFAULT_PAIRS = ("bf16+bf16", "bf16+int8", "int8+bf16", "int8+int8", "int4+bf16", "int4+int8")
_BLOCK_SIZE = 16
_CHUNK = 256  # rows of one native call, and of one piece of the comparison: logits are wide
Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """`tokens` tokens of `text` (None: ontology definitions) in contexts of `context`.

    `pairs` are "weights+KV" dtypes.
    """

    text: Path | None = None
    tokens: int = 20480
    context: int = 512
    pairs: tuple[str, ...] = DEFAULT_PAIRS
    threads: int | None = None


@dataclass(slots=True)
class Score:
    """Sums over predicted tokens, and every KL for its percentile."""

    loss: float = 0.0
    agreed: int = 0
    kl: list[Array] = field(default_factory=list)

    def row(self, name: str, reference_loss: float) -> dict[str, Any]:
        """Means; the loss change as the change of perplexity."""
        kl = np.concatenate(self.kl)
        count = len(kl)
        perplexity = math.exp(self.loss / count)
        return {
            "dtype": name,
            "mean_kl": float(kl.mean(dtype=np.float64)),
            "p99_kl": float(np.percentile(kl, 99)),
            "max_kl": float(kl.max()),
            "perplexity": perplexity,
            "perplexity_change": perplexity / math.exp(reference_loss / count) - 1,
            "top1_agreement": self.agreed / count,
            "tokens": count,
        }


def run(model: str, work: Accuracy) -> Report:
    """Score every pair of dtypes. Raises ConfigError when the text is too short or a dtype unknown."""
    path = resolve_model(model)
    checkpoint = open_checkpoint(path)
    pairs = [_pair(name) for name in work.pairs]
    if not 2 <= work.context <= checkpoint.config.max_position:
        raise ConfigError(
            f"context must be 2 to {checkpoint.config.max_position} tokens, the model's own limit"
        )
    contexts = _contexts(checkpoint.tokenizer(), work)
    threads = work.threads or len(os.sched_getaffinity(0))
    executors = [_executor(path, weights, kv, work.context, threads) for weights, kv in pairs]
    reference = Reference(checkpoint.config, checkpoint.tensor)
    scores = [Score() for _ in pairs]
    reference_loss = 0.0
    with progress_bar("accuracy, contexts", len(contexts)) as bar:
        for tokens in contexts:
            hidden = reference.hidden_states(tokens)
            logits = [_native_logits(executor, tokens) for executor in executors]
            for start in range(0, len(tokens) - 1, _CHUNK):
                rows = slice(start, min(start + _CHUNK, len(tokens) - 1))
                targets = np.asarray(tokens[rows.start + 1 : rows.stop + 1])
                expected = log_softmax(_reference_logits(reference, hidden[rows]))
                reference_loss -= float(_at(expected, targets).sum(dtype=np.float64))
                for score, own in zip(scores, logits, strict=True):
                    compare(score, expected, log_softmax(own[rows]), targets)
            bar.advance()
    rows_ = [score.row(name, reference_loss) for name, score in zip(work.pairs, scores, strict=True)]
    count = rows_[0]["tokens"]
    reference_row = {
        "dtype": "fp32 reference",
        "perplexity": math.exp(reference_loss / count),
        "tokens": count,
    }
    settings = {
        "model": model,
        "text": str(work.text) if work.text else "definitions of the Human Phenotype Ontology",
        "context": work.context,
        "instruction set": choose_isa(),
    }
    return Report("accuracy", settings, [_table([reference_row, *rows_])])


def _table(rows: list[dict[str, Any]]) -> Table:
    columns = [
        ("dtype", "weights+KV", ""),
        ("mean_kl", "mean KL, nats", ".5f"),
        ("p99_kl", "99th percentile", ".4f"),
        ("max_kl", "largest", ".3f"),
        ("perplexity", "perplexity", ".4f"),
        ("perplexity_change", "change", "+.3%"),
        ("top1_agreement", "same best token", ".2%"),
        ("tokens", "predictions", ",d"),
    ]
    return Table(
        "against the fp32 forward pass", columns, rows, ["KL: reference distribution to the engine's"]
    )


def _pair(name: str) -> tuple[str, str]:
    weights, _, kv = name.partition("+")
    if weights not in ("bf16", "int8", "int4") or kv not in ("bf16", "int8"):
        raise ConfigError(f"{name!r} is no pair of dtypes; write weights+KV, as in int8+bf16")
    return weights, kv


def _contexts(tokenizer: Any, work: Accuracy) -> list[list[int]]:
    text = ontology_text() if work.text is None else _read(work.text)
    # A token has at least one character, so this many characters are surely enough, and encoding stays quick.
    tokens = tokenizer.encode(text[: work.tokens * 16], add_special=False)
    count = work.tokens // work.context
    if count < 1 or len(tokens) < count * work.context:
        raise ConfigError(
            f"the text has {len(tokens):,} tokens; {work.tokens:,} are wanted, in contexts of {work.context}"
        )
    return [tokens[i * work.context : (i + 1) * work.context] for i in range(count)]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text (byte {error.start})") from error


def _executor(path: Path, weights: str, kv: str, context: int, threads: int) -> NativeExecutor:
    return NativeExecutor(
        load_packed(path, weights, lambda _: None),
        max_model_len=context,
        block_size=_BLOCK_SIZE,
        num_blocks=-(-context // _BLOCK_SIZE),
        kv_cache_dtype=kv,
        threads=threads,
        isa=choose_isa(),
    )


def _native_logits(executor: NativeExecutor, tokens: list[int]) -> Array:
    """Logits [tokens, vocab] of the engine, prefilled in chunks as a long prompt is."""
    parts = [executor.logits(batch) for batch in chunk_batches(tokens)]
    return np.concatenate(parts)


def chunk_batches(tokens: list[int]) -> Iterator[StepBatch]:
    """Steps of one sequence whose pages are blocks 0, 1, ...; every row's logits are wanted."""
    ids = np.asarray(tokens, np.int32)
    for start in range(0, len(ids), _CHUNK):
        stop = min(start + _CHUNK, len(ids))
        blocks = -(-stop // _BLOCK_SIZE)
        valid = np.full(blocks, _BLOCK_SIZE, np.int32)
        valid[-1] = stop - _BLOCK_SIZE * (blocks - 1)
        yield StepBatch(
            token_ids=ids[start:stop],
            positions=np.arange(start, stop, dtype=np.int32),
            query_start=np.array([0, stop - start], np.int32),
            table_start=np.array([0, blocks], np.int32),
            table_block=np.arange(blocks, dtype=np.int32),
            table_valid=valid,
            output_rows=np.arange(stop - start, dtype=np.int32),
            sample_rows=_NO_SAMPLING,
        )


def _no_sampling() -> SampleRows:
    """Rows of nothing: `logits` does not sample."""
    ints, floats = np.zeros(0, np.int32), np.zeros(0, np.float32)
    kinds, seeds, start = np.zeros(0, np.uint8), np.zeros(0, np.uint64), np.zeros(1, np.int32)
    return SampleRows(
        [], kinds, ints, ints, floats, floats, ints, floats, floats, floats, floats, seeds, ints,
        start, ints, floats, start, ints, ints,
    )  # fmt: skip


_NO_SAMPLING = _no_sampling()


def _reference_logits(reference: Reference, hidden: Array) -> Array:
    config = reference.config
    head = reference.weight("embed_tokens" if config.tie_embeddings else "lm_head")
    logits: Array = hidden @ head.T * np.float32(config.logit_multiplier)
    return logits


def log_softmax(logits: Array) -> Array:
    """Natural log-probabilities along the last axis; the sum in float64."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    out: Array = shifted - np.log(total).astype(np.float32)
    return out


def _at(logprobs: Array, targets: npt.NDArray[np.int64]) -> Array:
    return logprobs[np.arange(len(targets)), targets]


def compare(score: Score, expected: Array, own: Array, targets: npt.NDArray[np.int64]) -> None:
    """Add rows of log-probabilities [rows, vocab]: KL(expected || own), loss on targets, same best token."""
    kl = (np.exp(expected) * (expected - own)).sum(axis=-1, dtype=np.float64)
    score.kl.append(np.maximum(kl, 0.0).astype(np.float32))
    score.loss -= float(_at(own, targets).sum(dtype=np.float64))
    score.agreed += int((expected.argmax(axis=-1) == own.argmax(axis=-1)).sum())
