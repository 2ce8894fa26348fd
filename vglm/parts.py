"""What a model's directory ships besides its language model: the graph encoder, read when it is first needed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from vglm.model.bundle import card_file, is_bundle, is_exported

if TYPE_CHECKING:
    from vglm.encoder.relational import RelationalEncoder

ENCODER = "encoder.safetensors"


class Parts:
    """The trained parts beside the language model in a directory; safe to share between threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._encoder: RelationalEncoder | None = None

    @property
    def encoder(self) -> RelationalEncoder | None:
        """The graph encoder, None if the model has none. Raises ModelError when its file is damaged."""
        from vglm.encoder.relational import RelationalEncoder

        with self._lock:
            if self._encoder is None and (file := self._file(ENCODER)) is not None:
                self._encoder = RelationalEncoder.load(file)
            return self._encoder

    def _file(self, name: str) -> Path | None:
        has_card = is_bundle(self._path) or is_exported(self._path)
        return card_file(self._path, name) if has_card else None
