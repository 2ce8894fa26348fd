"""`vglm inspect` shows sizes that follow from the config and the file."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

from tests.gguf_files import write_random_llama
from vglm.model.checkpoint import open_checkpoint
from vglm.model.describe import describe_model, kv_bytes_per_token

FIXTURES = Path(__file__).parents[1] / "fixtures"


def test_counts_are_those_of_the_tensors() -> None:
    checkpoint = open_checkpoint(FIXTURES / "glm4")
    description = describe_model(checkpoint)
    assert description.parameters == sum(checkpoint.tensor(name).size for name in checkpoint.names())
    assert description.stored_bytes == 2 * description.parameters
    assert description.tensor_formats == {"BF16": len(checkpoint.names())}
    assert description.has_chat_template
    assert description.layer_parameters["gate_proj"] == prod(checkpoint.shape("layers.0.gate_proj"))
    assert json.loads(json.dumps(description.as_dict()))["architecture"] == "glm4"


def test_quantised_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_random_llama(tmp_path / "model.gguf", "Q4_1"))
    description = describe_model(checkpoint)
    assert description.tensor_formats == {"Q4_1": 8, "F32": 3}
    matrices = sum(prod(checkpoint.shape(name)) for name in checkpoint.names() if "norm" not in name)
    assert description.stored_bytes == matrices // 32 * 20 + 3 * 64 * 4
    assert (
        description.weight_bytes["int4"] < description.weight_bytes["int8"] < description.weight_bytes["bf16"]
    )


def test_kv_bytes() -> None:
    config = open_checkpoint(FIXTURES / "qwen3").config
    assert kv_bytes_per_token(config, "bf16") == 2 * 2 * 2 * 20 * 2
    assert kv_bytes_per_token(config, "int8") == 2 * 2 * 2 * (20 + 4)
