"""Truncated, flipped and hand-made hostile files raise ModelError, quickly, and nothing else."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gguf_files import convert_fixture, write_random_llama
from vglm.errors import ModelError
from vglm.model.chat_template import ChatTemplate
from vglm.model.checkpoint import open_checkpoint
from vglm.model.describe import describe_model

FIXTURES = Path(__file__).parents[1] / "fixtures"
RELAXED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def use_everything(path: Path) -> None:
    """Open a model and touch all that a loader touches; ModelError is the only error allowed."""
    start = time.monotonic()
    with suppress(ModelError):
        checkpoint = open_checkpoint(path)
        describe_model(checkpoint)
        for name in checkpoint.names():
            assert checkpoint.tensor(name).shape == checkpoint.shape(name)
            checkpoint.blocks(name)
        tokenizer = checkpoint.tokenizer()
        tokenizer.decode(tokenizer.encode("Ataxia, 12 \u00b5m"))
        if checkpoint.chat_template is not None:
            ChatTemplate(checkpoint.chat_template)
    assert time.monotonic() - start < 10


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = convert_fixture(FIXTURES / "llama-llama3", tmp_path_factory.mktemp("gguf") / "model.gguf", "F16")
    return path.read_bytes()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("directory") / "model"
    shutil.copytree(FIXTURES / "qwen3", path)
    return path


def mutate(content: bytes, edits: list[tuple[int, int]], cut: int | None, limit: int) -> bytes:
    """Set bytes at positions (mostly in the header, where the structure is) and cut the end off."""
    data = bytearray(content)
    for position, value in edits:
        data[position % min(len(data), limit)] = value
    return bytes(data if cut is None else data[: cut % (len(data) + 1)])


EDITS = st.lists(st.tuples(st.integers(0, 1 << 24), st.integers(0, 255)), max_size=12)
CUT = st.one_of(st.none(), st.integers(0, 1 << 24))


@RELAXED
@given(edits=EDITS, cut=CUT)
def test_gguf_bytes(gguf_bytes: bytes, tmp_path: Path, edits: list[tuple[int, int]], cut: int | None) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(mutate(gguf_bytes, edits, cut, limit=9000))
    use_everything(path)


@RELAXED
@given(name=st.sampled_from(sorted(p.name for p in (FIXTURES / "qwen3").iterdir())), edits=EDITS, cut=CUT)
def test_directory_bytes(
    directory: Path, tmp_path: Path, name: str, edits: list[tuple[int, int]], cut: int | None
) -> None:
    path = tmp_path / "model"
    shutil.copytree(directory, path, dirs_exist_ok=True)
    (path / name).write_bytes(mutate((directory / name).read_bytes(), edits, cut, limit=2000))
    use_everything(path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
CONFIG_KEYS = [
    *json.loads((FIXTURES / "qwen3" / "config.json").read_text()),
    *("rope_scaling", "rope_theta", "quantization_config", "num_experts", "partial_rotary_factor"),
]


@settings(RELAXED, max_examples=120)
@given(changes=st.dictionaries(st.sampled_from(CONFIG_KEYS), JSON_VALUES, min_size=1, max_size=3))
def test_config_values(directory: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "model"
    shutil.copytree(directory, path, dirs_exist_ok=True)
    config = json.loads((directory / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    use_everything(path)


def header(*entries: bytes, tensors: int = 0, count: int | None = None) -> bytes:
    return (
        b"GGUF"
        + struct.pack("<IQQ", 3, tensors, len(entries) if count is None else count)
        + b"".join(entries)
    )


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


HUGE = (1 << 64) - 1
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "magic only": b"GGUF",
    "other file": b"PK\x03\x04" + bytes(100),
    "version 1": b"GGUF" + struct.pack("<IQQ", 1, 0, 0) + bytes(64),
    "big endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64),
    "2^64 tensors": header(tensors=HUGE) + bytes(64),
    "2^64 entries": header(count=HUGE) + bytes(64),
    "key of 2^64 bytes": header(struct.pack("<Q", HUGE), b"abc") + bytes(64),
    "array of 2^64 strings": header(text(b"k") + struct.pack("<IIQ", 9, 8, HUGE)) + bytes(64),
    "array of 2^63 doubles": header(text(b"k") + struct.pack("<IIQ", 9, 12, 1 << 63)) + bytes(64),
    "array of arrays": header(text(b"k") + struct.pack("<IIQ", 9, 9, 1)) + bytes(64),
    "unknown type": header(text(b"k") + struct.pack("<I", 77)) + bytes(64),
    "key not UTF-8": header(text(b"\xff\xfe") + struct.pack("<IB", 7, 1)) + bytes(64),
    "key twice": header(*[text(b"k") + struct.pack("<IB", 7, 1)] * 2) + bytes(64),
    "alignment 0": header(text(b"general.alignment") + struct.pack("<II", 4, 0)) + bytes(64),
    "alignment 3": header(text(b"general.alignment") + struct.pack("<II", 4, 3)) + bytes(64),
    "dimensions overflow": header(tensors=1)
    + text(b"token_embd.weight")
    + struct.pack("<IQQQQIQ", 4, 1 << 16, 1 << 16, 1 << 16, 1 << 16, 0, 0)
    + bytes(64),
    "2^32 dimensions": header(tensors=1) + text(b"t") + struct.pack("<I", 0xFFFFFFFF) + bytes(64),
    "offset overflow": header(tensors=1) + text(b"t") + struct.pack("<IQIQ", 1, 8, 0, HUGE - 31) + bytes(64),
    "unknown tensor type": header(tensors=1) + text(b"t") + struct.pack("<IQIQ", 1, 8, 99, 0) + bytes(64),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_gguf(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ModelError, match=r"model\.gguf"):
        open_checkpoint(path)


def edit_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the table of a safetensors file, keeping its data."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + length])
    change(table)
    raw = json.dumps(table).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + length :])


NORM = "model.norm.weight"
SAFETENSORS_EDITS: dict[str, Callable[[dict[str, Any]], None]] = {
    "missing": lambda table: table.pop(NORM),
    "wrong shape": lambda table: table[NORM].update(shape=[4, 10]),
    "huge shape": lambda table: table[NORM].update(shape=[1 << 40, 1 << 40]),
    "negative": lambda table: table[NORM].update(shape=[-40]),
    "float": lambda table: table[NORM].update(shape=[40.0]),
    "past the end": lambda table: table[NORM].update(data_offsets=[0, 1 << 50]),
    "backwards": lambda table: table[NORM].update(data_offsets=[160, 0]),
    "other dtype": lambda table: table[NORM].update(dtype="F8_E4M3"),
    "not an object": lambda table: table.update({NORM: 7}),
    "other tensor": lambda table: table.update({"model.layers.0.self_attn.q_norm.weight": table[NORM]}),
}


@pytest.mark.parametrize("name", SAFETENSORS_EDITS)
def test_hostile_safetensors(name: str, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "llama", tmp_path / "model")
    edit_header(tmp_path / "model" / "model.safetensors", SAFETENSORS_EDITS[name])
    with pytest.raises(ModelError, match=r"norm"):
        open_checkpoint(tmp_path / "model")


@pytest.mark.parametrize(
    "shard", ["../../secret.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", "..", ""]
)
def test_shards_stay_in_the_directory(shard: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(FIXTURES / "qwen3", path)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"][NORM] = shard
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="plain file name"):
        open_checkpoint(path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(FIXTURES / "qwen3", path)
    (path / "model-00002-of-00005.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00005\.safetensors"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "'MambaForCausalLM' is not supported; vGLM runs Llama"),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "Qwen3MoeForCausalLM"),
        ({"num_experts": 8}, "mixture-of-experts"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
        ({"rope_parameters": {"rope_type": "linear"}}, "needs 'factor'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "'gptq'"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"hidden_size": "48"}, "hidden_size is '48'"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_hidden_layers": 10**9}, "num_layers is 1000000000"),
        ({"num_hidden_layers": 1}, "lm_head|layers|fit"),
        ({"head_dim": 21}, "rotary dimension 21"),
        ({"tie_word_embeddings": False}, "'lm_head.weight'"),
    ],
)
def test_unsupported_configs_say_what(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(FIXTURES / "qwen3", path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    if changes == {"num_hidden_layers": 1}:
        # Layers past the declared ones are draft heads in some files; they are not read.
        assert open_checkpoint(path).config.num_layers == 1
        return
    with pytest.raises(ModelError, match=message):
        open_checkpoint(path)


def test_what_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[1, 2]")
    with pytest.raises(ModelError, match="JSON object"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(ModelError, match="not valid JSON"):
        open_checkpoint(tmp_path)


def test_truncated_gguf_says_so(tmp_path: Path) -> None:
    path = write_random_llama(tmp_path / "model.gguf", "Q4_0")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.gguf: cut short or damaged: tensor"):
        open_checkpoint(path)
