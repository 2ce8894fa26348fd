"""The settings of a training, written down in its folder: another training must not go on there."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from vglm.errors import ConfigError


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write the settings down, or see that they are those of the run that began here.

    Raises ConfigError that names the first one that differs, with both values.
    """
    wanted = json.loads(json.dumps(settings, default=str))
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        return
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); remove the folder to begin a new training") from None
    difference = _difference(found, wanted, "")
    if difference:
        raise ConfigError(
            f"{path.parent} holds a training with other settings: {difference}. Give the same settings to resume it, "
            "or name another folder"
        )


def _difference(found: Any, wanted: Any, where: str) -> str:
    """The first field that differs, with both values, or an empty text."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            name = f"{where}.{key}" if where else key
            difference = _difference(found.get(key, "(none)"), wanted.get(key, "(none)"), name)
            if difference:
                return difference
        return ""
    same = found == wanted or (_is_nan(found) and _is_nan(wanted))
    return "" if same else f"{where} was {found}, now {wanted}"


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
