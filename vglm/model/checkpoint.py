"""A model on disk, whatever its format: config, tensors under canonical names, tokenizer, chat template."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vglm.errors import ModelError
from vglm.model.config import ModelConfig
from vglm.model.graph_card import GraphCard
from vglm.model.names import NameMap, Recipe, Shape, canonical_shapes
from vglm.model.tokenizer import Tokenizer

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Q4Blocks:
    """A 4-bit tensor as the file stores it: weight = scale * quant + minimum, exactly.

    quants uint8 [out, in/32, 32] with values 0..15; scale and minimum float32 [out, in/32].
    """

    quants: npt.NDArray[np.uint8]
    scale: Float32
    minimum: Float32


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to a tensor: B A (LoRA, arXiv:2106.09685); A float32 [r, in] and B float32 [out, r]."""

    a: Float32
    b: Float32


class TensorSource(ABC):
    """The stored tensors of a file or directory, under their own names, in [out, in] orientation."""

    @abstractmethod
    def shapes(self) -> Mapping[str, Shape]:
        """Shape of every stored tensor."""

    @abstractmethod
    def format(self, name: str) -> str:
        """Storage format, as in "F32", "BF16", "Q4_1"."""

    @abstractmethod
    def check_readable(self, name: str) -> None:
        """Raise ModelError when a tensor is stored in a way that `rows` cannot read."""

    @abstractmethod
    def num_bytes(self, name: str) -> int:
        """Bytes that the tensor takes in the file."""

    @abstractmethod
    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Rows [start, stop) of a tensor (along its first dimension) as float32, perhaps read-only."""

    def block_rows(self, name: str, start: int, stop: int) -> Q4Blocks | None:
        """The same rows as 4-bit blocks, or None when the format is not a 4-bit one."""
        del name, start, stop
        return None


class Checkpoint:
    """A validated model: every tensor that its config needs is present with the right shape."""

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        source: TensorSource,
        *,
        style: str,
        interleaved: bool,
        fingerprint: str,
        chat_template: str | None,
        graph_card: GraphCard | None = None,
    ) -> None:
        self.path = path
        self.config = config
        self.fingerprint = fingerprint
        self.chat_template = chat_template
        self.graph_card = graph_card
        self._source = source
        self._shapes = canonical_shapes(config)
        self._recipes = NameMap(config, source.shapes(), style, interleaved).recipes()
        for recipe in self._recipes.values():
            source.check_readable(recipe.source)

    def names(self) -> list[str]:
        """Canonical names of the model's tensors (no lm_head when it is tied to the embeddings)."""
        return list(self._recipes)

    def shape(self, name: str) -> Shape:
        """Shape of a canonical tensor, without reading it."""
        return self._shapes[self._known(name)]

    def tensor(self, name: str) -> Float32:
        """A canonical tensor, dequantised: float32, C-contiguous, in half-split rotary order."""
        recipe = self._recipe(name)
        rows = self._source.rows(recipe.source, recipe.start, recipe.stop)
        return np.ascontiguousarray(rows if recipe.permute is None else rows[recipe.permute])

    def blocks(self, name: str) -> Q4Blocks | None:
        """The 4-bit blocks of a canonical tensor, or None when it is not stored in 4 bits."""
        recipe = self._recipe(name)
        blocks = self._source.block_rows(recipe.source, recipe.start, recipe.stop)
        if blocks is None or recipe.permute is None:
            return blocks
        order = recipe.permute
        return Q4Blocks(blocks.quants[order], blocks.scale[order], blocks.minimum[order])

    def unadapted(self) -> Checkpoint:
        """The checkpoint without the low-rank part of its tensors: itself, unless it is an AdaptedCheckpoint."""
        return self

    def low_rank(self, name: str) -> LowRank | None:
        """What an adapter adds to a tensor, None for nothing."""
        del name
        return None

    def rank(self, name: str) -> int:
        """Rank of what an adapter adds to a tensor, 0 for nothing."""
        del name
        return 0

    def source_format(self, name: str) -> str:
        """Storage format of a canonical tensor in the file."""
        return self._source.format(self._recipe(name).source)

    def source_bytes(self, name: str) -> int:
        """Bytes that a canonical tensor takes in the file."""
        recipe = self._recipe(name)
        total = self._source.shapes()[recipe.source][0]
        return self._source.num_bytes(recipe.source) * (recipe.stop - recipe.start) // total

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; ModelError when the file has none or it cannot be used."""
        raise ModelError(f"{self.path}: the model has no tokenizer")

    def _known(self, name: str) -> str:
        if name not in self._recipes:
            raise ModelError(f"{self.path}: the model has no tensor {name!r}")
        return name

    def _recipe(self, name: str) -> Recipe:
        return self._recipes[self._known(name)]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a GGUF file, a Hugging Face directory, or a model made of another one (see vglm/model/bundle.py).

    Raises ModelError that says what is wrong with anything else.
    """
    from vglm.model.adapter import open_bundle
    from vglm.model.bundle import is_bundle
    from vglm.model.gguf import open_gguf
    from vglm.model.safetensors_dir import open_directory

    path = Path(path)
    try:
        if path.is_dir():
            return open_bundle(path) if is_bundle(path) else open_directory(path)
        if path.is_file():
            return open_gguf(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (MemoryError, RecursionError) as error:
        raise ModelError(
            f"{path}: damaged or hostile: needs more memory or depth than a model can"
        ) from error
    raise ModelError(f"{path}: no such model file or directory")
