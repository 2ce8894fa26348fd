"""GGUF files hold the same models as Hugging Face directories, and every tensor format is read exactly."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType

from tests.gguf_files import convert_fixture, write_random_llama
from tests.reference import Reference
from vglm.errors import ModelError
from vglm.model.checkpoint import open_checkpoint

FIXTURES = Path(__file__).parents[1] / "fixtures"
CONVERTIBLE = [
    "llama",
    "llama-llama3",
    "llama-linear-bias",
    "mistral-sliding",
    "qwen2",
    "qwen2-yarn",
    "qwen3",
    "glm",
    "glm4",
    "phi3",
    "granite",
]
KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_same_model_as_the_directory(name: str, tmp_path: Path) -> None:
    directory = open_checkpoint(FIXTURES / name)
    file = open_checkpoint(convert_fixture(FIXTURES / name, tmp_path / "model.gguf"))
    assert file.config.architecture == directory.config.architecture
    assert set(file.names()) == set(directory.names())
    for tensor in file.names():
        np.testing.assert_array_equal(file.tensor(tensor), directory.tensor(tensor), err_msg=tensor)
    expected = np.load(FIXTURES / name / "expected.npz")
    logits = Reference(file.config, file.tensor).logits(expected["token_ids"].tolist())
    np.testing.assert_allclose(logits[expected["rows"]], expected["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["glm", "qwen2"])
def test_fused_queries_keys_and_values(name: str, tmp_path: Path) -> None:
    directory = open_checkpoint(FIXTURES / name)
    file = open_checkpoint(convert_fixture(FIXTURES / name, tmp_path / "model.gguf", fuse_qkv=True))
    assert "blk.0.attn_qkv.weight" in file.header.tensors  # type: ignore[attr-defined]
    for tensor in directory.names():
        np.testing.assert_array_equal(file.tensor(tensor), directory.tensor(tensor), err_msg=tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_dequantised(kind: str, tmp_path: Path) -> None:
    hidden = 256 if kind.endswith("K") else 64
    path = write_random_llama(tmp_path / "model.gguf", kind, hidden)
    checkpoint = open_checkpoint(path)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for canonical, name in (("embed_tokens", "token_embd"), ("layers.0.down_proj", "blk.0.ffn_down")):
        tensor = stored[f"{name}.weight"]
        expected = gguf.quants.dequantize(tensor.data, GGMLQuantizationType[kind])
        np.testing.assert_array_equal(checkpoint.tensor(canonical), expected)
        assert checkpoint.source_format(canonical) == kind
        assert checkpoint.source_bytes(canonical) == tensor.n_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_the_tensor_exactly(kind: str, tmp_path: Path) -> None:
    hidden = 256 if kind.endswith("K") else 64
    checkpoint = open_checkpoint(write_random_llama(tmp_path / "model.gguf", kind, hidden))
    for name in checkpoint.names():
        blocks = checkpoint.blocks(name)
        if kind not in ("Q4_0", "Q4_1", "Q4_K") or "norm" in name:
            assert blocks is None
            continue
        assert blocks is not None
        assert blocks.quants.dtype == np.uint8
        assert blocks.quants.max() <= 15
        weights = blocks.scale[..., None] * blocks.quants.astype(np.float32) + blocks.minimum[..., None]
        np.testing.assert_array_equal(weights.reshape(len(weights), -1), checkpoint.tensor(name))


def test_tokenizer_and_template_come_from_the_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(convert_fixture(FIXTURES / "llama", tmp_path / "model.gguf"))
    directory = open_checkpoint(FIXTURES / "llama")
    text = "Ataxia \u2014 HP:0001251 <|im_end|>"
    assert checkpoint.tokenizer().encode(text) == directory.tokenizer().encode(text)
    assert checkpoint.chat_template is not None
    assert checkpoint.config.bos_token_id == 1
    assert checkpoint.config.eos_token_ids == (2, 0)


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    first = open_checkpoint(write_random_llama(tmp_path / "a.gguf", "Q4_0"))
    again = open_checkpoint(tmp_path / "a.gguf")
    other = open_checkpoint(write_random_llama(tmp_path / "b.gguf", "Q4_1"))
    assert first.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", "mamba", "'mamba' is not supported"),
        ("llama.expert_count", 8, "mixture-of-experts"),
        ("llama.rope.scaling.type", "longrope", "'longrope' is not supported"),
        ("llama.block_count", 2, "'blk.1.attn_norm.weight'"),
        ("llama.embedding_length", 96, "has shape"),
        ("llama.attention.head_count", 0, "head_count"),
        ("llama.attention.head_count_kv", 3, "cannot evenly share"),
        ("llama.rope.freq_base", float("nan"), "rope_freq_base|rope.freq_base"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, key: str, value: object, message: str) -> None:
    path = write_random_llama(tmp_path / "model.gguf", "F32")
    rewrite(path, key, value)
    with pytest.raises(ModelError, match=message):
        open_checkpoint(path)


def rewrite(path: Path, key: str, value: object) -> None:
    """Copy a GGUF file with one metadata value changed or added."""
    reader = gguf.GGUFReader(path)
    architecture = value if key == "general.architecture" else "llama"
    writer = gguf.GGUFWriter(path.with_suffix(".new"), str(architecture))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in (key, "general.architecture"):
            continue
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        contents = field.contents()
        if contents != []:
            writer.add_key_value(name, contents, field.types[0], sub_type)
    if key != "general.architecture":
        kinds = {int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}
        writer.add_key_value(key, value, kinds.get(type(value), gguf.GGUFValueType.STRING))
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").rename(path)
