"""Sentence embeddings: a BERT encoder (MiniLM) whose token vectors are averaged and scaled to unit length.

Source: Reimers and Gurevych, "Sentence-BERT" (2019); the checkpoint is all-MiniLM-L6-v2 (`vglm pull
all-minilm-l6-v2`). Texts are packed one after another without padding: matrix products run over all their tokens
at once, attention over runs of texts of equal length, which sorting makes long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from vglm.errors import ModelError, RequestError
from vglm.model.safetensors_dir import read_json
from vglm.model.tokenizer import tokenizer_errors

Float32 = npt.NDArray[np.float32]
MAX_TOKENS = 128  # what the checkpoint was trained with; longer texts are cut
_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT encoder."""

    width: int
    inner: int
    heads: int
    layers: int
    positions: int
    epsilon: float


class SentenceEncoder:
    """Texts to unit vectors. Build one with `load`; it is immutable and may be shared by threads."""

    def __init__(self, config: BertConfig, weights: Mapping[str, Float32], tokenizer: Tokenizer) -> None:
        self.config = config
        self._weights = weights
        self._tokenizer = tokenizer
        self._layers = [_Layer(weights, f"encoder.layer.{number}", config) for number in range(config.layers)]

    @classmethod
    def load(cls, directory: str | Path) -> SentenceEncoder:
        """Read `config.json`, `model.safetensors` and `tokenizer.json`; raises ModelError if they do not fit."""
        path = Path(directory)
        config = _config(path)
        try:
            weights = load_file(path / "model.safetensors")
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path / 'model.safetensors'}: cannot be read: {error}") from error
        weights = {name.removeprefix("bert."): tensor for name, tensor in weights.items()}
        _check(weights, config, path)
        with tokenizer_errors(str(path / "tokenizer.json")):
            tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(min(MAX_TOKENS, config.positions))
        if tokenizer.get_vocab_size() > len(weights["embeddings.word_embeddings.weight"]):
            raise ModelError(f"{path}: the tokenizer has more tokens than the model has embeddings")
        return cls(config, weights, tokenizer)

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return self.config.width

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of every text, between [CLS] and [SEP], cut to `MAX_TOKENS`."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise RequestError("texts: expected a list of strings", "texts")
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]

    def encode(self, texts: Sequence[str]) -> Float32:
        """Unit vectors of texts, float32 [len(texts), width], in the order of the texts.

        Raises RequestError when `texts` is no list of strings.
        """
        tokens = self.tokens(texts)
        vectors = np.zeros((len(tokens), self.width), np.float32)
        for rows in _batches([len(ids) for ids in tokens]):
            vectors[rows] = self._embed([tokens[row] for row in rows])
        return vectors

    def _embed(self, tokens: list[list[int]]) -> Float32:
        """Unit vectors of texts that are sorted by length, float32 [n, width]."""
        lengths = [len(ids) for ids in tokens]
        positions = np.concatenate([np.arange(length) for length in lengths])
        weights = self._weights
        hidden = weights["embeddings.word_embeddings.weight"][
            np.concatenate([np.array(ids) for ids in tokens])
        ]
        hidden = hidden + weights["embeddings.position_embeddings.weight"][positions]
        hidden += weights["embeddings.token_type_embeddings.weight"][0]
        hidden = _normalised(hidden, weights, "embeddings.LayerNorm", self.config.epsilon)
        for layer in self._layers:
            hidden = layer(hidden, lengths)
        sums = np.add.reduceat(hidden, np.cumsum([0, *lengths[:-1]]), axis=0)
        means = sums / np.array(lengths, np.float32)[:, None]
        unit: Float32 = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        return unit


class _Layer:
    """One layer of BERT (post-norm): attention and a feed-forward network, each added and normalised."""

    def __init__(self, weights: Mapping[str, Float32], name: str, config: BertConfig) -> None:
        self._weights, self._name, self._config = weights, name, config
        parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        self._qkv = np.concatenate([weights[f"{part}.weight"] for part in parts]).T
        self._qkv_bias = np.concatenate([weights[f"{part}.bias"] for part in parts])

    def __call__(self, hidden: Float32, lengths: list[int]) -> Float32:
        """float32 [tokens, width] to the same shape; `lengths` of the packed texts, equal ones side by side."""
        seen = self._linear(self._attention(hidden, lengths), "attention.output.dense")
        hidden = self._normalised(hidden + seen, "attention.output.LayerNorm")
        inner = gelu(self._linear(hidden, "intermediate.dense"))
        return self._normalised(hidden + self._linear(inner, "output.dense"), "output.LayerNorm")

    def _attention(self, hidden: Float32, lengths: list[int]) -> Float32:
        heads, width = self._config.heads, self._config.width
        qkv = hidden @ self._qkv + self._qkv_bias
        seen = np.empty_like(hidden)
        start = 0
        for length, run in groupby(lengths):
            stop = start + length * len(list(run))
            packed = qkv[start:stop].reshape(-1, length, 3, heads, width // heads)
            query, key, value = packed.transpose(2, 0, 3, 1, 4)  # each [texts, heads, length, width / heads]
            scores = query @ key.swapaxes(-1, -2) * np.float32((width // heads) ** -0.5)
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ value
            seen[start:stop] = mixed.swapaxes(1, 2).reshape(-1, width)
            start = stop
        return seen

    def _linear(self, values: Float32, part: str) -> Float32:
        name = f"{self._name}.{part}"
        product: Float32 = values @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]
        return product

    def _normalised(self, values: Float32, part: str) -> Float32:
        return _normalised(values, self._weights, f"{self._name}.{part}", self._config.epsilon)


def gelu(values: Float32) -> Float32:
    """x * Phi(x), float32 of any shape; erf after Abramowitz and Stegun 7.1.26 (error below 2e-7)."""
    x = np.abs(values) * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(0.3275911) * x)
    tail = np.full_like(t, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail *= t
        tail += np.float32(coefficient)
    tail *= t * np.exp(-x * x)  # 1 - erf(|x| / sqrt 2)
    result: Float32 = values * np.where(values > 0, 1 - tail / 2, tail / 2)
    return result


def _normalised(values: Float32, weights: Mapping[str, Float32], name: str, epsilon: float) -> Float32:
    centred = values - values.mean(axis=1, keepdims=True)
    variance = np.einsum("ij,ij->i", centred, centred)[:, None] / np.float32(values.shape[1])
    normalised: Float32 = centred / np.sqrt(variance + np.float32(epsilon)) * weights[f"{name}.weight"]
    return normalised + weights[f"{name}.bias"]


def _batches(lengths: list[int]) -> list[list[int]]:
    """Rows grouped, shortest texts first, so that no group has more than `_BATCH_TOKENS` tokens."""
    batches: list[list[int]] = []
    room = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if lengths[row] > room:
            batches.append([])
            room = _BATCH_TOKENS
        batches[-1].append(row)
        room -= lengths[row]
    return batches


def _config(path: Path) -> BertConfig:
    file = path / "config.json"
    if not file.is_file():
        raise ModelError(
            f"{path}: no config.json here; `vglm pull all-minilm-l6-v2` fetches a sentence encoder"
        )
    raw = read_json(file)
    if raw.get("model_type") != "bert" or raw.get("hidden_act") != "gelu":
        raise ModelError(f"{file}: expected a BERT encoder with gelu, found {raw.get('model_type')!r}")
    sizes = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "max_position_embeddings",
    )
    for name in sizes:
        if not isinstance(raw.get(name), int) or raw[name] < 1:
            raise ModelError(f"{file}: {name} must be a positive whole number, found {raw.get(name)!r}")
    width, inner, heads, layers, positions = (int(raw[name]) for name in sizes)
    if width % heads:
        raise ModelError(f"{file}: hidden_size {width} is no multiple of num_attention_heads {heads}")
    return BertConfig(width, inner, heads, layers, positions, float(raw.get("layer_norm_eps", 1e-12)))


def _check(weights: Mapping[str, Float32], config: BertConfig, path: Path) -> None:
    """Every tensor that is used is there, float32, and of the shape that the configuration says."""
    wide = (config.width,)
    expected: dict[str, tuple[int | None, ...]] = {
        "embeddings.word_embeddings.weight": (None, config.width),
        "embeddings.position_embeddings.weight": (config.positions, config.width),
        "embeddings.token_type_embeddings.weight": (None, config.width),
        "embeddings.LayerNorm.weight": wide,
        "embeddings.LayerNorm.bias": wide,
    }
    for number in range(config.layers):
        name = f"encoder.layer.{number}"
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            expected[f"{name}.{norm}.weight"] = expected[f"{name}.{norm}.bias"] = wide
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            expected[f"{name}.attention.{part}.weight"] = (config.width, config.width)
            expected[f"{name}.attention.{part}.bias"] = wide
        expected[f"{name}.intermediate.dense.weight"] = (config.inner, config.width)
        expected[f"{name}.intermediate.dense.bias"] = (config.inner,)
        expected[f"{name}.output.dense.weight"] = (config.width, config.inner)
        expected[f"{name}.output.dense.bias"] = wide
    for name, shape in expected.items():
        tensor = weights.get(name)
        if tensor is None:
            raise ModelError(f"{path}: model.safetensors has no tensor {name!r}")
        fits = len(tensor.shape) == len(shape) and all(
            want is None or want == have for want, have in zip(shape, tensor.shape, strict=True)
        )
        if not fits or tensor.dtype != np.float32:
            raise ModelError(f"{path}: {name} is {tensor.dtype} {tensor.shape}, expected float32 {shape}")
