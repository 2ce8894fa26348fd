"""The parts of a link model: each scores all candidates of a question (given entity, directed relation).

Relation r has the number r from head to tail and R + r from tail to head, so every question asks for the other end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vglm.encoder.link_evidence import Evidence
from vglm.encoder.sentence import gelu
from vglm.errors import ModelError

Float32 = npt.NDArray[np.float32]
Longs = npt.NDArray[np.int64]
Tensors = Mapping[str, npt.NDArray[np.generic]]


class Part(Protocol):
    """One way to score triples, over N entities and 2R directed relations."""

    @property
    def kind(self) -> str: ...

    @property
    def num_entities(self) -> int: ...

    @property
    def num_channels(self) -> int: ...

    def scores(self, given: Longs, relations: Longs) -> Float32:
        """float32 [num_channels, B, N] for given entities and directed relations, int64 [B] each."""
        ...

    def tensors(self) -> dict[str, npt.NDArray[np.generic]]:
        """What is stored; `part_of` makes the part from it."""
        ...


@dataclass(frozen=True, eq=False)
class ComplexPart:
    """ComplEx (Trouillon et al., 2016): Re(<e_given, w_relation, conj(e_candidate)>).

    `entities` float32 [N, 2d] and `relations` float32 [2R, 2d] hold real halves, then imaginary ones.
    """

    entities: Float32
    relations: Float32
    kind = "complex"
    num_channels = 1

    @property
    def num_entities(self) -> int:
        return len(self.entities)

    def scores(self, given: Longs, relations: Longs) -> Float32:
        queries = complex_product(self.entities[given], self.relations[relations])
        return (queries @ self.entities.T)[None]

    def tensors(self) -> dict[str, npt.NDArray[np.generic]]:
        return {"entities": self.entities, "relations": self.relations}


def complex_product(left: Float32, right: Float32) -> Float32:
    """The products of complex numbers that are stored as [..., real halves | imaginary halves]."""
    a, b = np.split(left, 2, axis=-1)
    c, d = np.split(right, 2, axis=-1)
    return np.concatenate([a * c - b * d, a * d + b * c], axis=-1)


@dataclass(frozen=True, eq=False)
class TextPart:
    """A bi-encoder of texts (after SimKGC, Wang et al., 2022): the cosine of a query and a candidate, times `scale`.

    `texts` float32 [N, t] are unit vectors of the entities' texts, `keys` float32 [N, k] the candidates' unit vectors. A
    query is a hidden layer of m units over text and relation, plus a linear map of the text scaled per relation.
    """

    texts: Float32
    keys: Float32
    relations: Float32  # [2R, r]
    gates: Float32  # [2R, t]
    skip: Float32  # [t, k]
    inner: Float32  # [t + r, m]
    inner_bias: Float32  # [m]
    outer: Float32  # [m, k]
    outer_bias: Float32  # [k]
    scale: Float32  # [1]
    kind = "text"
    num_channels = 1

    @property
    def num_entities(self) -> int:
        return len(self.keys)

    def queries(self, given: Longs, relations: Longs) -> Float32:
        """Query vectors of length `scale`, float32 [B, k]."""
        texts = self.texts[given] * np.float32(self.texts.shape[1] ** 0.5)
        joined = np.concatenate([texts, self.relations[relations]], axis=1)
        hidden = gelu(joined @ self.inner + self.inner_bias)
        vectors = (texts * self.gates[relations]) @ self.skip + hidden @ self.outer + self.outer_bias
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        scaled: Float32 = vectors * (self.scale / np.maximum(lengths, np.float32(1e-12)))
        return scaled

    def scores(self, given: Longs, relations: Longs) -> Float32:
        return (self.queries(given, relations) @ self.keys.T)[None]

    def tensors(self) -> dict[str, npt.NDArray[np.generic]]:
        names = ("relations", "gates", "skip", "inner", "inner_bias", "outer", "outer_bias", "scale")
        half = {"texts": self.texts.astype(np.float16), "keys": self.keys.astype(np.float16)}
        return half | {name: getattr(self, name) for name in names}


def part_of(kind: object, tensors: Tensors) -> Part:
    """A part from what it stored. Raises ModelError for an unknown kind, TypeError for tensors of another kind."""
    if kind == "evidence":
        return Evidence.from_tensors(tensors)
    own = {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
    if kind == "complex":
        return ComplexPart(**own)
    if kind == "text":
        return TextPart(**own)
    raise ModelError(f"a part of the kind {kind!r} is not known to this version of vGLM")
