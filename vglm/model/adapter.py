"""Low-rank adapters: a base model's weights plus what training has added to them (LoRA, arXiv:2106.09685).

`adapter.safetensors` has for any of the base's projections two matrices, in float32, float16 or bfloat16:

    layers.{i}.{q,k,v,o,gate,up,down}_proj.lora_a   A [r, in]
    layers.{i}.{q,k,v,o,gate,up,down}_proj.lora_b   B [out, r]

and the metadata `rank` (r) and `alpha`. The weight becomes W + (alpha / r) * B A. Names and orders are the canonical ones of
vglm/model/names.py: rows of q and k are in half-split rotary order, as `Checkpoint.tensor` gives them and as `transformers`
computes (the interleaved rows of a GGUF llama are put in that order first). So an adapter fits its base whatever file that
is in.

For bf16 and int8 the merge happens once, when weights are packed: it costs nothing at run time. What an adapter adds is a few
hundredths of a step of 4 bits, though, so for int4 it stays beside the weights and is multiplied on its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from vglm.errors import ModelError
from vglm.model.bundle import ADAPTER, card_file, content_state, read_card
from vglm.model.checkpoint import Checkpoint, Float32, LowRank, Q4Blocks, open_checkpoint
from vglm.model.graph_card import GraphCard
from vglm.model.names import Shape
from vglm.model.safetensors_dir import SafetensorsTensors, StoredTensor, read_safetensors
from vglm.model.tokenizer import Tokenizer

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MAX_RANK = 1024


class Adapter:
    """A validated adapter for one base model."""

    def __init__(self, path: Path, base: Checkpoint) -> None:
        """Open `path` and check it against `base`. Raises ModelError that says which tensor is wrong, and how."""
        self.path = path
        self._base = base
        stored, metadata = read_safetensors(path)
        self._tensors = SafetensorsTensors(stored)
        self.rank = self._rank(metadata)
        self.alpha = self._alpha(metadata)
        self.names = self._check(stored)

    def low_rank(self, name: str) -> LowRank:
        """What is added to a weight, B with its factor in it; 'name' is one of `names`."""
        a, b = (self._matrix(f"{name}.lora_{side}") for side in "ab")
        return LowRank(a, np.float32(self.alpha / self.rank) * b)

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        return sum(math.prod(shape) for shape in self._tensors.shapes().values())

    def num_bytes(self, name: str) -> int:
        """Bytes that the file has for a weight."""
        return sum(self._tensors.num_bytes(f"{name}.lora_{side}") for side in "ab")

    def _matrix(self, name: str) -> Float32:
        rows = self._tensors.rows(name, 0, self._tensors.shapes()[name][0])
        if not np.isfinite(rows).all():
            raise ModelError(f"{self.path}: tensor {name!r} has values that are not finite")
        return rows

    def _rank(self, metadata: Mapping[str, str]) -> int:
        text = metadata.get("rank", "")
        rank = int(text) if text.isdecimal() and text.isascii() and len(text) < 8 else 0
        if not 1 <= rank <= MAX_RANK:
            found = f"is {text[:40]!r}" if text else "is missing"
            raise ModelError(
                f"{self.path}: the metadata 'rank' {found}; it must be a number from 1 to {MAX_RANK}"
            )
        return rank

    def _alpha(self, metadata: Mapping[str, str]) -> float:
        text = metadata.get("alpha", "")
        try:
            alpha = float(text)
        except ValueError:
            alpha = math.nan
        if not 0 < alpha < 1e6:
            found = f"is {text[:40]!r}" if text else "is missing"
            raise ModelError(f"{self.path}: the metadata 'alpha' {found}; it must be a positive number")
        return alpha

    def _check(self, stored: Mapping[str, StoredTensor]) -> tuple[str, ...]:
        """The names of the weights that are adapted. Raises ModelError for tensors that do not fit the base."""
        known = set(self._base.names())
        expected: dict[str, Shape] = {}
        for tensor in stored:
            name, _, side = tensor.rpartition(".")
            if (
                name not in known
                or name.rpartition(".")[2] not in PROJECTIONS
                or side not in ("lora_a", "lora_b")
            ):
                raise ModelError(
                    f"{self.path}: tensor {tensor[:100]!r} is not of the form layers.<i>.<projection>.lora_a or .lora_b "
                    f"of the base model {self._base.path.name}"
                )
            out, inner = self._base.shape(name)
            expected |= {f"{name}.lora_a": (self.rank, inner), f"{name}.lora_b": (out, self.rank)}
        for tensor, shape in expected.items():
            if tensor not in stored:
                raise ModelError(f"{self.path}: tensor {tensor!r} is missing, its other half is there")
            try:
                self._tensors.check_readable(tensor)
            except ModelError as error:
                raise ModelError(f"{self.path}: {error}") from error
            if stored[tensor].shape != shape:
                raise ModelError(
                    f"{self.path}: tensor {tensor!r} has shape {list(stored[tensor].shape)}; with rank {self.rank} the base "
                    f"{self._base.path.name} needs {list(shape)}"
                )
        return tuple(sorted({tensor.rpartition(".")[0] for tensor in expected}))


class AdaptedCheckpoint(Checkpoint):
    """A base checkpoint with an adapter merged into its weights, under a card of its own.

    Everything that is not adapted is the base's: tokenizer, chat template, other tensors, and the 4-bit blocks of those.
    """

    def __init__(
        self, path: Path, base: Checkpoint, adapter: Adapter | None, graph_card: GraphCard | None
    ) -> None:
        # not Checkpoint's own: it resolves stored tensors, and those are the base's
        self.path = path
        self.base = base
        self.adapter = adapter
        self.config = base.config
        self.chat_template = base.chat_template
        self.graph_card = graph_card
        self.fingerprint = f"{base.fingerprint}-{content_state(path)}"
        self._adapted = frozenset(adapter.names if adapter is not None else ())

    def names(self) -> list[str]:
        return self.base.names()

    def shape(self, name: str) -> Shape:
        return self.base.shape(name)

    def tensor(self, name: str) -> Float32:
        weight = self.base.tensor(name)
        if name not in self._adapted or self.adapter is None:
            return weight
        added = self.adapter.low_rank(name)
        merged = weight + added.b @ added.a
        if not np.isfinite(merged).all():
            raise ModelError(
                f"{self.adapter.path}: tensor {name!r} is not finite any more with the adapter in it"
            )
        return merged

    def blocks(self, name: str) -> Q4Blocks | None:
        """None for an adapted tensor, which is not on the grid of its file any more."""
        return None if name in self._adapted else self.base.blocks(name)

    def unadapted(self) -> Checkpoint:
        return self.base

    def low_rank(self, name: str) -> LowRank | None:
        return self.adapter.low_rank(name) if name in self._adapted and self.adapter else None

    def rank(self, name: str) -> int:
        return self.adapter.rank if name in self._adapted and self.adapter else 0

    def source_format(self, name: str) -> str:
        form = self.base.source_format(name)
        return f"{form} + rank {self.adapter.rank}" if name in self._adapted and self.adapter else form

    def source_bytes(self, name: str) -> int:
        added = 0
        if name in self._adapted and self.adapter is not None:
            added = self.adapter.num_bytes(name)
        return self.base.source_bytes(name) + added

    def tokenizer(self) -> Tokenizer:
        return self.base.tokenizer()


def open_bundle(path: Path) -> AdaptedCheckpoint:
    """Open a directory that names a base model. Raises ModelError, also when the base has not been fetched."""
    from vglm.model.pull import resolve_base

    card = read_card(path)
    base = open_checkpoint(resolve_base(path, fetch=False))
    file = card_file(path, ADAPTER)
    adapter = None if file is None else Adapter(file, base)
    return AdaptedCheckpoint(path, base, adapter, card.graph or base.graph_card)


def save_adapter(path: Path, tensors: Mapping[str, np.ndarray], rank: int, alpha: float) -> None:
    """Write an adapter's matrices, named as above, as float16 (numpy has no bfloat16). Raises ModelError for values that
    float16 cannot hold."""
    halves = {}
    for name, value in tensors.items():
        with np.errstate(over="ignore"):
            halves[name] = np.ascontiguousarray(value, np.float16)
        if not np.isfinite(halves[name]).all():
            raise ModelError(f"{path}: tensor {name!r} has values that float16 cannot hold")
    save_file(halves, path, {"rank": str(rank), "alpha": repr(float(alpha))})
