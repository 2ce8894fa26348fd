"""pull --list and inspect."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import MODEL, Run


def test_list_names_models_and_data(vglm: Run, model: str) -> None:
    known = json.loads(vglm("pull", "--list", "--json").stdout)
    by_name = {entry["name"]: entry for entry in known}
    assert by_name[MODEL]["path"] == model
    assert by_name[MODEL]["kind"] == "model"
    assert by_name["hpo"]["kind"] == "data"
    assert MODEL in vglm("pull", "--list").stdout


def test_a_fetched_model_is_not_fetched_again(vglm: Run, model: str) -> None:
    done = vglm("pull", MODEL, environment={"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_NO_INDEX": "1"})
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, model, "")


def test_inspect_tells_architecture_sizes_and_memory(vglm: Run, model: str) -> None:
    text = vglm("inspect", model).stdout
    for expected in ("llama", "134,515,008", "Q4_1", "9 heads over 3 KV heads of 64", "8,192 tokens"):
        assert expected in text


def test_inspect_json(vglm: Run, model: str) -> None:
    done = vglm("inspect", MODEL, "--json", "--tokens", "1000", "--sequences", "2")
    about = json.loads(done.stdout)
    assert about["parameters"] == 134_515_008
    assert about["config"]["num_layers"] == 30
    assert about["memory_need"]["tokens"] == 2000
    needs = about["memory_need"]["bytes"]
    weights, kv = about["weight_bytes"], about["kv_bytes_per_token"]
    assert needs["int8+int8"] == weights["int8"] + 2000 * kv["int8"]
    assert needs["bf16+bf16"] > needs["int8+int8"] > needs["int4+int8"]


def test_inspect_refuses_what_is_no_model(vglm: Run, tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(20))
    done = vglm("inspect", str(file))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
