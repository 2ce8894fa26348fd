"""What a model's directory ships besides its language model, read when it is first needed: a graph encoder, classifiers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from vglm.errors import ModelError
from vglm.model.bundle import card_file, is_bundle, is_exported

if TYPE_CHECKING:
    from vglm.encoder.graph_classifier import GraphClassifier
    from vglm.encoder.relational import RelationalEncoder

ENCODER = "encoder.safetensors"


class Parts:
    """The trained parts beside the language model in a directory; safe to share between threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._encoder: RelationalEncoder | None = None
        self._classifiers: dict[Path, tuple[tuple[int, int], GraphClassifier]] = {}

    @property
    def encoder(self) -> RelationalEncoder | None:
        """The graph encoder, None if the model has none. Raises ModelError when its file is damaged."""
        from vglm.encoder.relational import RelationalEncoder

        with self._lock:
            if self._encoder is None and (file := self._file(ENCODER)) is not None:
                self._encoder = RelationalEncoder.load(file)
            return self._encoder

    def classifier(self, source: str | Path) -> GraphClassifier:
        """A trained graph classifier: one of the model's own by its name, else a file, which is read again when it has changed.

        Raises ModelError for a name or a file that there is not, and for a file that is none.
        """
        own = self.own_classifier(source) if isinstance(source, str) else None
        if own is not None:
            return own
        path = Path(source)
        if not path.is_file():
            raise ModelError(
                f"classifier {str(source)[:200]!r}: no such file, and the model has none of this name; "
                "make one with `vglm train classifier`"
            )
        return self._read_classifier(path)

    def own_classifier(self, name: str) -> GraphClassifier | None:
        """The classifier that the model's card lists as NAME.safetensors, None if it lists none."""
        if name + ".safetensors" == ENCODER or (file := self._file(name + ".safetensors")) is None:
            return None
        return self._read_classifier(file)

    def _read_classifier(self, path: Path) -> GraphClassifier:
        from vglm.encoder.graph_classifier import GraphClassifier

        status = path.stat()
        state = status.st_mtime_ns, status.st_size
        with self._lock:
            if path not in self._classifiers or self._classifiers[path][0] != state:
                self._classifiers[path] = state, GraphClassifier.load(path)
            return self._classifiers[path][1]

    def _file(self, name: str) -> Path | None:
        has_card = is_bundle(self._path) or is_exported(self._path)
        return card_file(self._path, name) if has_card else None
