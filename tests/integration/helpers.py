"""Real engines over tiny model files, and what of an output must be equal to the last bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from vglm import LLM, SamplingParams
from vglm.decode.outputs import RequestOutput

FIXTURES = Path(__file__).parents[1] / "fixtures"
TOKENS_OF_TINY = 261  # vocabulary of the fixtures that have a tokenizer
DTYPES = [("bf16", "bf16"), ("bf16", "int8"), ("int8", "int8"), ("int8", "bf16"), ("int4", "int8")]


def tiny_model(folder: Path, name: str = "llama", max_position: int = 4096) -> Path:
    """A copy of a fixture that allows long contexts."""
    target = folder / name
    if not target.exists():
        shutil.copytree(FIXTURES / name, target)
        (target / "expected.npz").unlink()
        config = json.loads((target / "config.json").read_text())
        config["max_position_embeddings"] = max_position
        (target / "config.json").write_text(json.dumps(config))
    return target


def write_llama(folder: Path, **config: int) -> Path:
    """A random Llama of other sizes than the fixtures', as a Hugging Face directory with their tokenizer."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": TOKENS_OF_TINY} | config
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FIXTURES / "llama" / name, folder / name)
    stored = json.loads((FIXTURES / "llama" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | sizes | {"tie_word_embeddings": True}))
    hidden, mlp, head = sizes["hidden_size"], sizes["intermediate_size"], sizes["head_dim"]
    heads, kv_heads = sizes["num_attention_heads"] * head, sizes["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (sizes["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(sizes["num_hidden_layers"]):
        p = f"model.layers.{i}."
        shapes |= {p + "input_layernorm.weight": (hidden,), p + "post_attention_layernorm.weight": (hidden,)}
        shapes |= {
            p + "self_attn.q_proj.weight": (heads, hidden),
            p + "self_attn.o_proj.weight": (hidden, heads),
        }
        shapes |= {p + f"self_attn.{x}_proj.weight": (kv_heads, hidden) for x in "kv"}
        shapes |= {p + f"mlp.{x}_proj.weight": (mlp, hidden) for x in ("gate", "up")}
        shapes |= {p + "mlp.down_proj.weight": (hidden, mlp)}
    rng = np.random.default_rng(0)
    tensors = {
        name: np.ones(shape, np.float32)
        if "norm" in name
        else 0.2 * rng.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


def mixed_requests(
    count: int, vocab: int, longest: int = 300, outputs: int = 9
) -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts of up to `longest` tokens, some with a prefix in common, and outputs of up to `outputs` tokens.

    Greedy, sampled, penalised, forked, with and without log-probabilities.
    """
    rng = np.random.default_rng(11)
    shared = rng.integers(3, vocab, longest // 2).tolist()
    prompts, params = [], []
    for i in range(count):
        length = int(rng.integers(1, 2 + (longest if i % 8 == 0 else 40)))
        prompt = rng.integers(3, vocab, length).tolist()
        prompts.append([*shared, *prompt[: longest // 3]] if i % 3 == 0 else prompt)
        kind = i % 5
        common = {"max_tokens": 1 + 7 * i % outputs, "logprobs": i % 4, "ignore_eos": True}
        if kind == 0:
            params.append(SamplingParams(temperature=0, **common))
        elif kind == 1:
            params.append(SamplingParams(temperature=0.9, seed=i, **common))
        elif kind == 2:
            params.append(SamplingParams(temperature=1.3, top_p=0.9, top_k=20, seed=i, n=3, **common))
        elif kind == 3:
            params.append(
                SamplingParams(temperature=0, repetition_penalty=1.3, presence_penalty=0.4, **common)
            )
        else:
            params.append(SamplingParams(temperature=0.7, min_p=0.02, seed=i, prompt_logprobs=2, **common))
    return prompts, params


def exact(output: RequestOutput) -> Any:
    """Everything of an output that must not depend on what else ran: floats as their bits."""
    completions = [
        (c.token_ids, c.text, c.finish_reason, _bits(c.cumulative_logprob), _entries(c.logprobs))
        for c in output.outputs
    ]
    return output.prompt_token_ids, completions, _entries(output.prompt_logprobs)


def _entries(logprobs: Sequence[Any] | None) -> Any:
    if logprobs is None:
        return None
    return [e and {t: (_bits(p.logprob), p.rank) for t, p in e.items()} for e in logprobs]


def _bits(value: float | None) -> str | None:
    return None if value is None else float(value).hex()


def assert_idle(llm: LLM) -> None:
    """Nothing waits, runs or holds a block but the cache."""
    engine = llm.engine
    assert not engine.has_unfinished
    engine.check_integrity()
    stats = llm.stats()
    assert stats.num_requests_running == stats.num_requests_waiting == 0
    assert stats.pool.used == stats.num_idle_blocks
    assert stats.kv_cache_usage == 0
