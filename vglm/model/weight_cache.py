"""Packed weights on disk: written once, then mapped, so that a second start is ready at once.

A cache file is a packed file (vglm/model/packed_file.py). Its name tells the source file's path, size and time of change; for a
model that is made of another one, the content of its card and adapter, and the same of its base. It is written beside its
final name and renamed, so a reader sees a whole file or none; a file that is cut short, damaged or of another version is
packed again.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from vglm.errors import ModelError
from vglm.model.bundle import content_state, is_bundle, is_exported
from vglm.model.export import open_exported
from vglm.model.packed_file import VERSION, Array, PackedModel, pack, packed_model, read_packed, write_packed
from vglm.model.pull import home, resolve_base

log = logging.getLogger("vglm")


def load_packed(source: Path, dtype: str, progress: Callable[[float], None]) -> PackedModel:
    """The packed form of a model file or directory, from the cache or made now; an exported model has it in itself.

    Raises ModelError when the source cannot be read. A cache that cannot be written (disk full, read-only)
    costs a warning.
    """
    if is_exported(source):
        return open_exported(source, dtype)
    place = _CachePlace(source, dtype)
    if (packed := place.read()) is not None:
        return packed
    with place.lock():
        if (packed := place.read()) is not None:  # another process has packed it while this one waited
            return packed
        return place.write(progress)


class _CachePlace:
    def __init__(self, source: Path, dtype: str) -> None:
        self.source, self.dtype = source, dtype
        path_hash = hashlib.blake2b(str(source.resolve()).encode(), digest_size=8).hexdigest()
        self.prefix = f"{source.stem[:40]}-{dtype}-{path_hash}-"
        self.folder = home() / "packed"
        self.path = self.folder / f"{self.prefix}{_state_of(source)}.safetensors"

    def read(self) -> PackedModel | None:
        if not self.path.exists():
            return None
        try:
            return read_packed(self.path)
        except OSError:
            return None
        except (ValueError, KeyError, TypeError, ModelError) as error:
            log.warning("packed weights %s are damaged (%s): packing again", self.path, error)
            return None

    def write(self, progress: Callable[[float], None]) -> PackedModel:
        arrays, meta = pack(self.source, self.dtype, progress)
        try:
            self._store(arrays, meta)
        except OSError as error:
            log.warning(
                "cannot keep packed weights in %s (%s): the next start packs them again", self.folder, error
            )
            return packed_model(arrays, meta)
        del arrays
        packed = self.read()
        if packed is None:
            raise ModelError(
                f"{self.path}: packed weights changed while they were written; delete the file and retry"
            )
        return packed

    def _store(self, arrays: dict[str, Array], meta: dict[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        prefix = glob.escape(self.prefix)
        for abandoned in self.folder.glob(
            prefix + "*.tmp"
        ):  # by a process that was killed: this one has the lock
            abandoned.unlink(missing_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self.folder, prefix=self.prefix, suffix=".tmp")
        temporary = Path(name)
        try:
            with open(descriptor, "wb") as file:
                write_packed(file, arrays, meta)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        for old in self.folder.glob(prefix + "*.safetensors"):
            if old != self.path:  # packed from an earlier state of the same source
                old.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One process packs, the others wait; without a writable folder everyone packs for itself."""
        import fcntl

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.folder / f"{self.prefix}lock", "w")  # noqa: SIM115
        except OSError:
            yield
            return
        with file:
            with contextlib.suppress(OSError):  # a file system without locks: each packs for itself
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _state_of(source: Path) -> str:
    digest = hashlib.blake2b(VERSION.encode(), digest_size=8)
    if is_bundle(source):
        digest.update(f"{content_state(source)}|{_state_of(resolve_base(source, fetch=False))}".encode())
        return digest.hexdigest()
    try:
        files = sorted(p for p in source.iterdir() if p.is_file()) if source.is_dir() else [source]
        states = [(path, path.stat()) for path in files]
    except OSError as error:
        raise ModelError(f"{source}: the model cannot be read: {error.strerror or error}") from error
    for path, stat in states:
        digest.update(f"{path.name}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
