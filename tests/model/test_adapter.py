"""Adapters: merged exactly, packed like any model, found by name, exported, and refused when they do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.gguf_files import convert_fixture, write_random_llama
from tests.integration.helpers import tiny_model
from vglm import LLM
from vglm.errors import ModelError
from vglm.model.adapter import AdaptedCheckpoint, save_adapter
from vglm.model.bundle import ADAPTER, card_file, is_bundle, read_card, write_card
from vglm.model.checkpoint import Checkpoint, open_checkpoint
from vglm.model.describe import describe_model
from vglm.model.export import PACKED, export_model
from vglm.model.graph_card import GraphCard
from vglm.model.packed_file import PackedModel
from vglm.model.packing import pack_model
from vglm.model.pull import pull, resolve_model
from vglm.model.reference import Reference
from vglm.model.registry import ASSETS
from vglm.model.weight_cache import load_packed

FIXTURES = Path(__file__).parents[1] / "fixtures"
CARD = GraphCard(spans=True, span_tokens=64)
RANK, ALPHA = 4, 8.0
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Llama of two layers, and an empty home for packed weights."""
    monkeypatch.setenv("VGLM_HOME", str(tmp_path / "home"))
    return tiny_model(tmp_path / "base")


def matrices(base: Checkpoint, seed: int = 0, names: tuple[str, ...] = PROJECTIONS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for layer in range(base.config.num_layers):
        for name in names:
            out, inner = base.shape(f"layers.{layer}.{name}")
            found[f"layers.{layer}.{name}.lora_a"] = rng.normal(0, 0.2, (RANK, inner)).astype(np.float16)
            found[f"layers.{layer}.{name}.lora_b"] = rng.normal(0, 0.05, (out, RANK)).astype(np.float16)
    return found


def bundle(folder: Path, base: Path, tensors: dict[str, np.ndarray] | None = None, **card: Any) -> Path:
    """A model made of `base`, with a random adapter unless `tensors` are given."""
    folder.mkdir(exist_ok=True)
    chosen = matrices(open_checkpoint(base)) if tensors is None else tensors
    save_adapter(folder / ADAPTER, chosen, RANK, ALPHA)
    given: dict[str, Any] = {"name": "mine", "version": "1.0", "base_model": str(base), "graph": CARD}
    write_card(folder, **given | card, files=[ADAPTER])
    return folder


def twin(base: Checkpoint, tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    """W + alpha / r * B A by the definition, in float64."""
    weight = base.tensor(name).astype(np.float64)
    if f"{name}.lora_a" in tensors:
        a, b = (tensors[f"{name}.lora_{side}"].astype(np.float64) for side in "ab")
        for row in range(len(weight)):
            for r in range(RANK):
                weight[row] += ALPHA / RANK * b[row, r] * a[r]
    return weight


def load(source: Path, dtype: str = "bf16") -> tuple[PackedModel, bool]:
    """The packed model, and whether it was packed now."""
    progress: list[float] = []
    return load_packed(source, dtype, progress.append), bool(progress)


# ---- merging


@pytest.mark.parametrize("form", ["directory", "gguf"])
def test_merged_weights_are_those_of_the_definition(base: Path, tmp_path: Path, form: str) -> None:
    """A GGUF llama stores q and k in another order of rows; the adapter is the same."""
    file = base if form == "directory" else convert_fixture(FIXTURES / "llama", tmp_path / "model.gguf")
    plain = open_checkpoint(file)
    tensors = matrices(plain)
    adapted = open_checkpoint(bundle(tmp_path / "mine", file, tensors))
    assert isinstance(adapted, AdaptedCheckpoint)
    assert adapted.names() == plain.names()
    changed = 0
    for name in plain.names():
        expected = twin(plain, tensors, name)
        np.testing.assert_allclose(adapted.tensor(name), expected, rtol=0, atol=1e-6, err_msg=name)
        changed += not np.array_equal(adapted.tensor(name), plain.tensor(name))
    assert changed == len(tensors) // 2
    assert adapted.tokenizer().to_json() == plain.tokenizer().to_json()
    assert (adapted.graph_card, plain.graph_card) == (CARD, None)


def test_only_what_is_adapted_changes(base: Path, tmp_path: Path) -> None:
    plain = open_checkpoint(convert_fixture(FIXTURES / "llama", tmp_path / "model.gguf"))
    adapted = open_checkpoint(bundle(tmp_path / "mine", plain.path, matrices(plain, names=("down_proj",))))
    for name in plain.names():
        assert np.array_equal(adapted.tensor(name), plain.tensor(name)) == (not name.endswith("down_proj"))
        assert adapted.source_format(name).endswith("rank 4") == name.endswith("down_proj")
    about = describe_model(adapted)
    assert about.card is not None
    assert (about.card["adapter_rank"], about.card["base"]) == (RANK, str(plain.path))
    assert about.card["adapter_parameters"] == sum(
        t.size for t in matrices(plain, names=("down_proj",)).values()
    )


@pytest.mark.parametrize(("dtype", "close"), [("bf16", 0.02), ("int8", 0.1), ("int4", 0.6)])
def test_engine_against_the_reference_on_merged_weights(
    base: Path, tmp_path: Path, dtype: str, close: float
) -> None:
    tensors = matrices(open_checkpoint(base))
    folder = bundle(tmp_path / "mine", base, tensors)
    plain = open_checkpoint(base)
    merged = {name: twin(plain, tensors, name).astype(np.float32) for name in plain.names()}
    prompt = list(range(3, 23))
    logits = Reference(plain.config, merged.__getitem__).logits(prompt[:-1]).astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    expected = logprobs[9:, :][np.arange(10), prompt[10:]]

    def scored(model: Path) -> np.ndarray:
        llm = LLM(model, dtype=dtype, kv_cache_memory="8M", max_model_len=128)
        return np.array(llm.score([prompt[:10]], [prompt[10:]], use_tqdm=False)[0].token_logprobs)

    assert np.abs(scored(folder) - expected).mean() < close
    assert np.abs(scored(base) - expected).mean() > close  # the adapter matters


def test_int4_keeps_the_blocks_of_the_file_beside_the_adapter(tmp_path: Path) -> None:
    file = write_random_llama(tmp_path / "model.gguf", "Q4_1")
    folder = bundle(tmp_path / "mine", file, matrices(open_checkpoint(file), names=("q_proj", "down_proj")))
    plain, adapted = (
        dict(pack_model(open_checkpoint(path), "int4", lambda _: None)) for path in (file, folder)
    )
    for name, array in plain.items():
        if not name.endswith(("qkv.int4", "down.int4")):
            assert np.array_equal(adapted[name], array) or not name.startswith(
                "layers."
            )  # lm_head is balanced
            continue
        projection = name.replace("qkv.int4", "q_proj").replace("down.int4", "down_proj")
        blocks = open_checkpoint(file).shape(projection)[1] // 32
        kept = adapted[name].reshape(-1, blocks + 2, 320)[:, :blocks]  # 64 columns more
        assert np.array_equal(kept, array.reshape(-1, blocks, 320))
    assert sorted(set(adapted) - set(plain)) == sorted(f"layers.0.{m}.low_rank.int4" for m in ("qkv", "down"))


def test_an_adapter_beside_the_weights_is_counted(tmp_path: Path) -> None:
    file = write_random_llama(tmp_path / "model.gguf", "Q4_1")
    folder = bundle(tmp_path / "mine", file, matrices(open_checkpoint(file), names=("v_proj", "up_proj")))
    checkpoints = [open_checkpoint(path) for path in (file, folder)]
    said = [describe_model(checkpoint).weight_bytes["int4"] for checkpoint in checkpoints]
    packed = [
        sum(a.nbytes for _, a in pack_model(checkpoint, "int4", lambda _: None)) for checkpoint in checkpoints
    ]
    assert said[1] - said[0] == packed[1] - packed[0] > 0


# ---- packed weights


def test_packed_again_when_card_adapter_or_base_change(base: Path, tmp_path: Path) -> None:
    folder = bundle(tmp_path / "mine", base)
    first, packed_now = load(folder)
    assert packed_now
    again, packed_now = load(folder)
    assert not packed_now
    assert again.fingerprint == first.fingerprint
    bundle(folder, base, matrices(open_checkpoint(base), seed=1))
    other, packed_now = load(folder)
    assert packed_now
    assert other.fingerprint != first.fingerprint
    assert not np.array_equal(other.arrays["layers.0.o.bf16"], first.arrays["layers.0.o.bf16"])
    bundle(folder, base, matrices(open_checkpoint(base), seed=1), graph=GraphCard(spans=True, span_tokens=32))
    assert load(folder)[0].graph_card == GraphCard(spans=True, span_tokens=32)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    (base / "model.safetensors").unlink()
    save_file(weights, base / "model.safetensors")
    assert load(folder)[1]


def test_graphs_are_spans_for_a_model_that_says_so(base: Path, tmp_path: Path) -> None:
    options = {"kv_cache_memory": "8M", "max_model_len": 256}
    assert LLM(bundle(tmp_path / "mine", base), **options).asking.prompts.mode == "spans"
    assert LLM(base, **options).asking.prompts.mode == "sequential"


def test_without_an_adapter_only_the_card_differs(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write_card(folder, name="mine", version="1", base_model=str(base), graph=CARD)
    adapted, plain = open_checkpoint(folder), open_checkpoint(base)
    assert all(np.array_equal(adapted.tensor(name), plain.tensor(name)) for name in plain.names())
    assert adapted.fingerprint != plain.fingerprint


# ---- by name


def test_the_base_may_be_named_from_the_directory(base: Path, tmp_path: Path) -> None:
    folder = bundle(tmp_path / "mine", base, base_model="../base/llama")
    assert resolve_model(folder, fetch=False) == folder
    assert load(folder)[1]


def test_what_comes_with_vglm_is_found_by_name(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "vglm.model.pull.bundled_directory", lambda name: folder if name == "open-autoglm-v1" else None
    )
    folder = bundle(tmp_path / "mine", base)
    assert pull("open-autoglm-v1", progress=False) == folder
    assert resolve_model("Open-AutoGLM-v1") == folder
    monkeypatch.setattr("vglm.model.pull.bundled_directory", lambda name: None)
    with pytest.raises(ModelError, match="is not in this installation"):
        pull("open-autoglm-v1", progress=False)


@pytest.mark.skipif(
    not (MODELS / "open-autoglm-v1" / "config.json").is_file(), reason="the model is not there"
)
def test_what_ships_is_whole_and_small() -> None:
    folder = MODELS / "open-autoglm-v1"
    card = read_card(folder)
    assert card.name == "open-autoglm-v1"
    assert card.base_model in ASSETS
    assert all(card_file(folder, name) is not None for name in card.files)
    shipped = [file for file in folder.rglob("*") if file.is_file()]
    assert {file.name for file in shipped} == {*card.files, "config.json", "README.md"}
    assert sum(file.stat().st_size for file in shipped) <= 40_000_000


# ---- exported


@pytest.mark.parametrize("dtype", ["bf16", "int8", "int4"])
def test_an_exported_model_opens_by_itself(base: Path, tmp_path: Path, dtype: str) -> None:
    folder = bundle(tmp_path / "mine", base)
    (folder / "README.md").write_text("about it")
    out = export_model(folder, dtype, tmp_path / "out" / "exported", lambda _: None)
    original = LLM(folder, dtype=dtype, kv_cache_memory="8M", max_model_len=128)
    for file in (*base.iterdir(), *folder.iterdir()):
        file.unlink()
    exported = LLM(out, kv_cache_memory="8M", max_model_len=128)
    assert exported.options.weight_dtype == dtype
    assert exported.options.kv_dtype == original.options.kv_dtype
    prompts = ["One two", "a graph"]
    assert [o.outputs[0].token_ids for o in exported.generate(prompts, use_tqdm=False)] == [
        o.outputs[0].token_ids for o in original.generate(prompts, use_tqdm=False)
    ]
    assert exported.asking.prompts.card == CARD
    assert (out / "README.md").read_text() == "about it"
    with pytest.raises(ModelError, match=f"was exported as {dtype}"):
        LLM(out, dtype="bf16" if dtype != "bf16" else "int8")


def test_exports_are_refused_or_reported(base: Path, tmp_path: Path) -> None:
    out = export_model(base, "int8", tmp_path / "exported", lambda _: None)
    with pytest.raises(ModelError, match="exported: is there already"):
        export_model(base, "int8", out, lambda _: None)
    with pytest.raises(ModelError, match="an exported model already"):
        export_model(out, "int8", tmp_path / "again", lambda _: None)
    with pytest.raises(ModelError, match="cannot be written"):
        export_model(base, "int8", base / "config.json" / "x", lambda _: None)
    data = bytearray((out / PACKED).read_bytes())
    data[-100] ^= 1
    (out / PACKED).unlink()
    (out / PACKED).write_bytes(data)
    with pytest.raises(ModelError, match="damaged"):
        LLM(out)
    (out / PACKED).unlink()
    with pytest.raises(ModelError, match=r"packed\.safetensors: cannot be read"):
        LLM(out)
    folder = tmp_path / "of-an-export"
    folder.mkdir()
    write_card(folder, name="x", version="1", base_model=str(out), graph=None)
    with pytest.raises(ModelError, match="not those of a plain model"):
        open_checkpoint(folder)


# ---- refused

Change = tuple[str, Any]


def altered(tensors: dict[str, np.ndarray], name: str, value: np.ndarray | None) -> dict[str, np.ndarray]:
    return {key: old for key, old in (tensors | {name: value}).items() if old is not None}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layers.0.q_proj.lora_a", None, r"layers\.0\.q_proj\.lora_a' is missing, its other half is there"),
        (
            "layers.0.q_proj.lora_b",
            np.ones((4, 4), np.float16),
            r"q_proj\.lora_b' has shape \[4, 4\]; with rank 4",
        ),
        (
            "layers.7.q_proj.lora_a",
            np.ones((4, 4), np.float16),
            r"layers\.7\.q_proj\.lora_a' is not of the form",
        ),
        ("layers.0.attn_norm.lora_a", np.ones((4, 4), np.float16), "attn_norm.lora_a' is not of the form"),
        ("embed_tokens.lora_a", np.ones((4, 4), np.float16), "embed_tokens.lora_a' is not of the form"),
        ("unknown", np.ones(3, np.float16), "'unknown' is not of the form"),
        ("layers.0.q_proj.lora_a", np.ones((4, 1), np.int32), "stored as I32"),
    ],
)
def test_tensors_that_do_not_fit(base: Path, tmp_path: Path, name: str, value: Any, message: str) -> None:
    folder = bundle(tmp_path / "mine", base)
    tensors = altered(matrices(open_checkpoint(base)), name, value)
    save_file(tensors, folder / ADAPTER, {"rank": "4", "alpha": "8.0"})
    write_card(folder, name="mine", version="1", base_model=str(base), graph=CARD, files=[ADAPTER])
    with pytest.raises(ModelError, match=message) as refused:
        open_checkpoint(folder)
    assert ADAPTER in str(refused.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite(base: Path, tmp_path: Path, bad: float) -> None:
    tensors = matrices(open_checkpoint(base))
    tensors["layers.1.up_proj.lora_b"][3, 2] = bad
    folder = bundle(tmp_path / "mine", base)
    save_file(tensors, folder / ADAPTER, {"rank": "4", "alpha": "8.0"})
    write_card(folder, name="mine", version="1", base_model=str(base), graph=CARD, files=[ADAPTER])
    with pytest.raises(ModelError, match=r"layers\.1\.up_proj\.lora_b' has values that are not finite"):
        load(folder)
    with pytest.raises(ModelError, match="float16 cannot hold"):
        save_adapter(tmp_path / "x", {"a": np.array([1e6])}, 1, 1.0)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"rank": "0", "alpha": "8"}, "'rank' is '0'"),
        ({"rank": "-4", "alpha": "8"}, "'rank' is '-4'"),
        ({"rank": "9" * 500, "alpha": "8"}, "'rank' is '999"),
        ({"alpha": "8"}, "'rank' is missing"),
        ({"rank": "4"}, "'alpha' is missing"),
        ({"rank": "4", "alpha": "nan"}, "'alpha' is 'nan'"),
        ({"rank": "4", "alpha": "-1"}, "'alpha' is '-1'"),
        ({"rank": "8", "alpha": "8"}, r"with rank 8 the base llama needs \["),
    ],
)
def test_metadata(base: Path, tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    folder = bundle(tmp_path / "mine", base)
    save_file(matrices(open_checkpoint(base)), folder / ADAPTER, metadata)
    write_card(folder, name="mine", version="1", base_model=str(base), graph=CARD, files=[ADAPTER])
    with pytest.raises(ModelError, match=message):
        open_checkpoint(folder)


def test_files_that_are_not_what_the_card_means(base: Path, tmp_path: Path) -> None:
    folder = bundle(tmp_path / "mine", base)
    whole = (folder / ADAPTER).read_bytes()
    (folder / ADAPTER).write_bytes(whole[:-1])
    with pytest.raises(ModelError, match=r"damaged or changed: its SHA-256 is [0-9a-f]{64}"):
        open_checkpoint(folder)
    for content in (b"", b"x" * 7, whole[:100], (1 << 40).to_bytes(8, "little") + whole[8:]):
        (folder / ADAPTER).unlink()
        (folder / ADAPTER).write_bytes(content)
        write_card(folder, name="mine", version="1", base_model=str(base), graph=CARD, files=[ADAPTER])
        with pytest.raises(ModelError, match=ADAPTER):
            open_checkpoint(folder)
    (folder / ADAPTER).unlink()
    with pytest.raises(ModelError, match="No such file"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("base_model", 3, "'base_model' must be some text, found 3"),
        ("base_model", "", "'base_model' must be some text"),
        (
            "base_model",
            "nothing-like-it",
            "the base model 'nothing-like-it' does not serve: .* is no file, directory",
        ),
        ("base_model", "x" * 4000, "does not serve"),
        ("base_model", "a\0b", "does not serve"),
        ("base_model", ".", "does not serve: its weights are not those of a plain model"),
        ("base_model", "open-autoglm-v1", "it has a base model of its own"),
        ("base_model", "hpo", "is a data set"),
        ("base_model", "smollm2-135m-instruct", "run `vglm pull smollm2-135m-instruct`"),
        ("version", None, "'version' must be some text, found None"),
        ("vglm_graph", {"spans": 1}, "graph card: 'spans'"),
        ("files", ["adapter.safetensors"], "'files' must be SHA-256 digests by file name"),
        ("files", {"../x": "0" * 64}, "is not a plain file name"),
        ("files", {"adapter.safetensors": "12"}, "needs its SHA-256"),
    ],
)
def test_cards(base: Path, tmp_path: Path, field: str, value: Any, message: str) -> None:
    folder = bundle(tmp_path / "mine", base)
    card = json.loads((folder / "config.json").read_text()) | {field: value}
    (folder / "config.json").write_text(json.dumps(card))
    assert is_bundle(folder)
    with pytest.raises(ModelError, match=message):
        open_checkpoint(folder)


def test_two_models_that_are_made_of_each_other(base: Path, tmp_path: Path) -> None:
    first = bundle(tmp_path / "first", base, base_model="../second")
    bundle(tmp_path / "second", base, base_model="../first")
    with pytest.raises(ModelError, match="not those of a plain model"):
        resolve_model(first)
