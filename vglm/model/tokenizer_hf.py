"""Tokenizers of Hugging Face directories: `tokenizer.json` with what `tokenizer_config.json` adds to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import processors

from vglm.errors import ModelError
from vglm.model.config import ModelConfig
from vglm.model.tokenizer import Tokenizer, tokenizer_errors

_MAX_BYTES = 256_000_000


def tokenizer_from_directory(path: Path, config: ModelConfig) -> Tokenizer:
    """Load `tokenizer.json`. Raises ModelError when it is missing, damaged, or larger than the embedding."""
    from vglm.model.safetensors_dir import read_json

    file = path / "tokenizer.json"
    if not file.is_file():
        raise ModelError(f"{path}: no tokenizer.json here")
    if file.stat().st_size > _MAX_BYTES:
        raise ModelError(f"{file}: {file.stat().st_size} bytes are too many for a tokenizer")
    settings_file = path / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.is_file() else {}
    with tokenizer_errors(str(file)):
        backend = Backend.from_str(file.read_bytes().decode("utf-8"))
        bos, eos = (_id(backend, settings.get(f"{name}_token")) for name in ("bos", "eos"))
        _apply_around(backend, settings, bos, eos)
        ends = [*config.eos_token_ids] or ([eos] if eos is not None else [])
        return Tokenizer(backend, config.bos_token_id if bos is None else bos, ends)


def _id(backend: Backend, token: Any) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        return None
    token_id: int | None = backend.token_to_id(text)
    return token_id


def _apply_around(backend: Backend, settings: dict[str, Any], bos: int | None, eos: int | None) -> None:
    """As transformers does: `add_bos_token` or `add_eos_token`, if given, replace the post-processor."""
    if "add_bos_token" not in settings and "add_eos_token" not in settings:
        return
    before = [bos] if settings.get("add_bos_token") and bos is not None else []
    after = [eos] if settings.get("add_eos_token") and eos is not None else []
    names = {token_id: str(backend.id_to_token(token_id)) for token_id in before + after}
    backend.post_processor = processors.TemplateProcessing(
        single=[f"{names[i]}:0" for i in before] + ["$A:0"] + [f"{names[i]}:0" for i in after],
        pair=None,
        special_tokens=[(name, token_id) for token_id, name in names.items()],
    )
