"""`vglm pull --list` and `vglm inspect`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vglm.console import console, plain_table, size

if TYPE_CHECKING:
    from vglm.model.describe import ModelDescription


def print_known(as_json: bool) -> None:
    """Every known model and data set, and where it is when it has been fetched."""
    from vglm.model.pull import fetched
    from vglm.model.registry import ASSETS

    places = fetched()
    rows = [
        {
            "name": asset.name,
            "kind": "model" if asset.is_model else "data",
            "description": asset.description,
            "path": str(places[name]) if places[name] else None,
        }
        for name, asset in ASSETS.items()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = plain_table("name", "kind", "what", "fetched to")
    for row in rows:
        table.add_row(row["name"], row["kind"], row["description"], row["path"] or "-")
    console().print(table)


def print_description(model: str, tokens: int, sequences: int, as_json: bool) -> None:
    """What a model is, and what it needs for `sequences` sequences of `tokens` tokens."""
    from vglm.model.bundle import is_exported
    from vglm.model.checkpoint import open_checkpoint
    from vglm.model.describe import describe_exported, describe_model
    from vglm.model.pull import resolve_model

    path = resolve_model(model)
    about = describe_exported(path) if is_exported(path) else describe_model(open_checkpoint(path))
    needs = _needs(about, tokens * sequences)
    if as_json:
        print(
            json.dumps(
                about.as_dict() | {"memory_need": {"tokens": tokens * sequences, "bytes": needs}}, indent=2
            )
        )
        return
    out = console()
    out.print(_facts(about))
    formats = plain_table("stored as", "tensors")
    for name, count in about.tensor_formats.items():
        formats.add_row(name, str(count))
    out.print(formats)
    what = f"{sequences} sequence{'s' if sequences > 1 else ''} of {tokens:,} tokens"
    memory = plain_table("dtype", "weights", "KV per token", f"KV of {what}", "together", numbers_from=1)
    for dtype, need in needs.items():
        weights, kv = dtype.split("+")
        memory.add_row(
            f"{weights}, KV {kv}",
            size(about.weight_bytes[weights]),
            size(about.kv_bytes_per_token[kv]),
            size(about.kv_bytes_per_token[kv] * tokens * sequences),
            size(need),
        )
    out.print(memory)


def _needs(about: ModelDescription, tokens: int) -> dict[str, int]:
    """Bytes of weights and KV by "weights+KV" dtypes, in the pairs that the engine takes by itself."""
    pairs = (("bf16", "bf16"), ("int8", "int8"), ("int4", "int8"))
    return {
        f"{w}+{kv}": about.weight_bytes[w] + about.kv_bytes_per_token[kv] * tokens
        for w, kv in pairs
        if w in about.weight_bytes
    }


def _facts(about: ModelDescription) -> Any:
    config = about.config
    scaling = config.rope.scaling.get("rope_type", "scaled") if config.rope.scaling else "plain"
    table = plain_table(about.path, "", header=True)
    for name, value in (
        *_card_facts(about),
        ("architecture", about.architecture),
        ("parameters", f"{about.parameters:,}"),
        ("on disk", size(about.stored_bytes)),
        ("layers", str(config.num_layers)),
        ("hidden size", f"{config.hidden_size:,}"),
        ("attention", f"{config.num_heads} heads over {config.num_kv_heads} KV heads of {config.head_dim}"),
        ("feed-forward", f"{config.intermediate_size:,}"),
        ("vocabulary", f"{config.vocab_size:,}{', tied embeddings' if config.tie_embeddings else ''}"),
        ("trained context", f"{config.max_position:,} tokens"),
        ("sliding window", f"{config.sliding_window:,} tokens" if config.sliding_window else "none"),
        ("rotary", f"theta {config.rope.theta:g}, {config.rope.rotary_dim} of {config.head_dim}, {scaling}"),
        ("chat template", "yes" if about.has_chat_template else "no"),
    ):
        table.add_row(name, value)
    return table


def _card_facts(about: ModelDescription) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    if about.card is not None:
        facts.append(("name", f"{about.card['name']}, version {about.card['version']}"))
        if "base" in about.card:
            facts.append(("base", about.card["base"]))
        if "adapter_rank" in about.card:
            rank, parameters = about.card["adapter_rank"], about.card["adapter_parameters"]
            facts.append(("adapter", f"rank {rank}, {parameters:,} parameters"))
        facts.append(("files", ", ".join(about.card["files"]) or "none"))
    if about.graph is not None:
        mode = "spans" if about.graph["spans"] else "sequential text"
        facts.append(
            ("graphs", f"{mode}, {about.graph['levels']} levels of {about.graph['span_tokens']} tokens")
        )
    return facts
