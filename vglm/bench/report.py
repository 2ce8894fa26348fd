"""What a benchmark found: tables for people, the same figures as JSON for programs."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vglm import __version__
from vglm.errors import ConfigError


@dataclass(slots=True)
class Table:
    """One table. `columns` are (key, heading, format); rows map keys to plain values, None shows as -."""

    title: str
    columns: list[tuple[str, str, str]]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def cells(self, row: dict[str, Any]) -> list[str]:
        """A row as text."""
        return [_shown(row.get(key), how) for key, _, how in self.columns]


@dataclass(slots=True)
class Report:
    """Tables of one benchmark with the settings that it ran under; `figures` are for programs alone."""

    benchmark: str
    settings: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        found = {
            "benchmark": self.benchmark,
            "version": __version__,
            "machine": machine(),
            "settings": self.settings,
            "tables": [{"title": t.title, "rows": t.rows, "notes": t.notes} for t in self.tables],
        }
        return found | {"figures": self.figures} if self.figures else found

    def show(self) -> None:
        """Print the tables to standard output."""
        from vglm.console import console, plain_table

        out = console()
        about = machine()
        out.print(f"{self.benchmark} on {about['processor']}, {about['processors']} processors")
        out.print(", ".join(f"{name} {value}" for name, value in self.settings.items() if value is not None))
        for table in self.tables:
            first_number = next((i for i, c in enumerate(table.columns) if c[2]), len(table.columns))
            shown = plain_table(*(c[1] for c in table.columns), title=table.title, numbers_from=first_number)
            for row in table.rows:
                shown.add_row(*table.cells(row))
            out.print(shown)
            for note in table.notes:
                out.print(f"  {note}")

    def publish(self, path: Path | None) -> None:
        """Show the tables, and write the JSON to `path` if given; "-" is standard output, and no tables."""
        if path == Path("-"):
            print(json.dumps(self.as_dict(), indent=2))
            return
        self.show()
        if path is not None:
            path.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")


def check_writable(path: Path | None, option: str = "--json") -> None:
    """Raise ConfigError now rather than after minutes of work when `path`, given as `option`, cannot be written."""
    if path is None or path == Path("-"):
        return
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise ConfigError(f"{option} {path}: cannot be written")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    from vglm import _native

    return {
        "processor": _processor_name(),
        "processors": len(os.sched_getaffinity(0)),
        "instruction_sets": _native.available_isas(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _shown(value: Any, how: str) -> str:
    if value is None:
        return "-"
    return format(value, how) if how and not isinstance(value, str) else str(value)
