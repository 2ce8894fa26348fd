"""The sentence encoder against a plain one-text-at-a-time twin, torch, and published similarities."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from vglm.encoder.sentence import SentenceEncoder, gelu
from vglm.errors import ModelError, RequestError
from vglm.model.pull import stored_path
from vglm.model.registry import ASSETS

WIDTH, INNER, HEADS, LAYERS = 24, 40, 3, 2
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*SPECIAL, "a", "small", "graph", "of", "words", "that", "nobody", "has", "read", "before"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with random weights, in a Hugging Face directory."""
    path = tmp_path_factory.mktemp("bert")
    config = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": 16,
        "layer_norm_eps": 1e-12,
    }
    (path / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=12)  # as checkpoints come; it must not reach the vectors
    tokenizer.save(str(path / "tokenizer.json"))
    random = np.random.default_rng(0)
    shapes = {
        "embeddings.word_embeddings.weight": (len(WORDS), WIDTH),
        "embeddings.position_embeddings.weight": (16, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
    }
    for number in range(LAYERS):
        name = f"encoder.layer.{number}"
        for part in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
        ):
            shapes |= {f"{name}.{part}.weight": (WIDTH, WIDTH), f"{name}.{part}.bias": (WIDTH,)}
        shapes |= {
            f"{name}.intermediate.dense.weight": (INNER, WIDTH),
            f"{name}.intermediate.dense.bias": (INNER,),
        }
        shapes |= {f"{name}.output.dense.weight": (WIDTH, INNER), f"{name}.output.dense.bias": (WIDTH,)}
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{name}.{norm}.weight": (WIDTH,), f"{name}.{norm}.bias": (WIDTH,)}
    weights = {name: random.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, path / "model.safetensors")
    return path


TEXTS = [
    "a small graph",
    "nobody",
    "",
    "words words of a graph that nobody has read before before",
    "graph small a",
]


def naive(directory: Path, tokens: list[int]) -> np.ndarray:
    """One text, one head, one query at a time, in float64."""
    w = {
        name: tensor.astype(np.float64) for name, tensor in load_file(directory / "model.safetensors").items()
    }

    def norm(rows: np.ndarray, name: str) -> np.ndarray:
        scaled = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-12)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(rows: np.ndarray, name: str) -> np.ndarray:
        return rows @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["embeddings.word_embeddings.weight"][tokens] + w["embeddings.token_type_embeddings.weight"][0]
    x = norm(x + w["embeddings.position_embeddings.weight"][: len(tokens)], "embeddings.LayerNorm")
    for number in range(LAYERS):
        name, size = f"encoder.layer.{number}", WIDTH // HEADS
        query, key, value = (linear(x, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
        seen = np.zeros_like(x)
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            for row in range(len(x)):
                weights = np.exp(key[:, part] @ query[row, part] / math.sqrt(size))
                seen[row, part] = weights / weights.sum() @ value[:, part]
        x = norm(x + linear(seen, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        inner = linear(x, f"{name}.intermediate.dense")
        inner = inner * np.vectorize(lambda v: (1 + math.erf(v / math.sqrt(2))) / 2)(inner)
        x = norm(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def test_equals_the_naive_twin(directory: Path) -> None:
    encoder = SentenceEncoder.load(directory)
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), WIDTH)
    for text, vector in zip(TEXTS, vectors, strict=True):
        expected = naive(directory, encoder.tokens([text])[0])
        np.testing.assert_allclose(vector, expected, atol=2e-6)


def test_a_text_has_one_vector_whatever_stands_beside_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = SentenceEncoder.load(directory)
    together = encoder.encode(TEXTS)
    monkeypatch.setattr("vglm.encoder.sentence._BATCH_TOKENS", 12)
    np.testing.assert_allclose(encoder.encode(TEXTS), together, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(TEXTS[::-1])[::-1], together, atol=1e-6)


def test_long_texts_are_cut_and_no_texts_are_fine(directory: Path) -> None:
    encoder = SentenceEncoder.load(directory)
    assert len(encoder.tokens(["graph " * 50])[0]) == 16
    assert encoder.encode([]).shape == (0, WIDTH)


def test_gelu_equals_its_definition() -> None:
    values = np.linspace(-12, 12, 4001, dtype=np.float32)
    exact = [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in values.tolist()]
    np.testing.assert_allclose(gelu(values), exact, atol=2e-6)


@pytest.mark.parametrize("texts", ["one text", [1, 2], [None]])
def test_what_is_no_list_of_strings_is_refused(directory: Path, texts: object) -> None:
    with pytest.raises(RequestError, match="list of strings"):
        SentenceEncoder.load(directory).encode(texts)  # type: ignore[arg-type]


def test_directories_that_do_not_fit_are_refused(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        SentenceEncoder.load(tmp_path)
    config = json.loads((directory / "config.json").read_text())
    for changed, message in (
        ({"model_type": "llama"}, "expected a BERT encoder"),
        ({"hidden_size": "wide"}, "hidden_size must be"),
        ({"num_attention_heads": 5}, "no multiple"),
        ({"intermediate_size": 48}, "expected float32"),
        ({"num_hidden_layers": 3}, "has no tensor"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | changed))
        for name in ("model.safetensors", "tokenizer.json"):
            (tmp_path / name).write_bytes((directory / name).read_bytes())
        with pytest.raises(ModelError, match=message):
            SentenceEncoder.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        SentenceEncoder.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08")
    with pytest.raises(ModelError, match="cannot be read"):
        SentenceEncoder.load(tmp_path)


def test_published_similarities() -> None:
    """The example on the model's page: 0.6660, 0.1046 and 0.1411."""
    stored = stored_path(ASSETS["all-minilm-l6-v2"])
    if stored is None:
        pytest.skip("all-minilm-l6-v2 has not been fetched")
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors = SentenceEncoder.load(stored).encode(texts)
    similarities = (vectors @ vectors.T)[[0, 0, 1], [1, 2, 2]]
    np.testing.assert_allclose(similarities, [0.6660, 0.1046, 0.1411], atol=1e-4)
