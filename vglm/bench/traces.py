"""Requests of real services, recorded: their lengths and arrivals from a file, or lengths drawn from a fit of one."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from vglm.errors import ConfigError

_TIMESTAMP, _CONTEXT, _GENERATED = "TIMESTAMP", "ContextTokens", "GeneratedTokens"
MOONCAKE_BLOCK = 512  # tokens that one hash id stands for

# Mean and standard deviation of the logarithm of the lengths in the Azure LLM inference trace 2023
# (conversation, 19,366 requests, CC BY 4.0), and the largest lengths. The trace does not ship with vGLM.
_FIT_CONTEXT = (6.6333, 0.9852, 14050)
_FIT_GENERATED = (5.0190, 0.8591, 1000)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Prompt and output tokens of requests in order of arrival, and where the figures are from."""

    source: str
    prompts: list[int]
    outputs: list[int]

    def __len__(self) -> int:
        return len(self.prompts)

    def fitting(self, max_model_len: int, count: int) -> Lengths:
        """The first `count` requests that fit into `max_model_len` tokens."""
        fits = [(p, o) for p, o in zip(self.prompts, self.outputs, strict=True) if p + o <= max_model_len][
            :count
        ]
        if not fits:
            raise ConfigError(f"no request of {self.source} fits into {max_model_len} tokens")
        return Lengths(self.source, [p for p, _ in fits], [o for _, o in fits])

    def divided(self, by: int) -> Lengths:
        """Every length divided, rounded up."""
        return Lengths(self.source, [-(-p // by) for p in self.prompts], [-(-o // by) for o in self.outputs])


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """A request of a trace: seconds since the trace's begin, tokens in and out, and the ids of its prompt's blocks."""

    arrival: float
    prompt: int
    output: int
    hash_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival. Equal `hash_ids` are equal blocks of `block` prompt tokens."""

    source: str
    requests: list[TracedRequest]
    block: int = MOONCAKE_BLOCK

    def window(self, start: float, duration: float | None) -> Trace:
        """Requests that arrive from `start` on, for `duration` seconds; their arrivals count from `start`."""
        end = float("inf") if duration is None else start + duration
        found = [replace(r, arrival=r.arrival - start) for r in self.requests if start <= r.arrival < end]
        if not found:
            raise ConfigError(f"no request of {self.source} arrives in the seconds {start:g} to {end:g}")
        return replace(self, requests=found)

    def fitting(self, max_model_len: int) -> Trace:
        """The requests that fit into `max_model_len` tokens."""
        found = [r for r in self.requests if r.prompt + r.output <= max_model_len]
        if not found:
            raise ConfigError(f"no request of {self.source} fits into {max_model_len} tokens")
        return replace(self, requests=found)

    def faster(self, by: float) -> Trace:
        """Arrivals `by` times as fast."""
        return replace(self, requests=[replace(r, arrival=r.arrival / by) for r in self.requests])

    def divided(self, by: int) -> Trace:
        """Every length divided, rounded up."""
        requests = [replace(r, prompt=-(-r.prompt // by), output=-(-r.output // by)) for r in self.requests]
        return replace(self, requests=requests, block=-(-self.block // by))

    def first(self, count: int) -> Trace:
        """The first `count` requests."""
        return replace(self, requests=self.requests[:count])


def read_trace(file: Path) -> Lengths:
    """Lengths from a CSV with columns ContextTokens and GeneratedTokens; ConfigError names bad lines."""
    missing = f"{file}: the first line must name the columns {_CONTEXT} and {_GENERATED}"
    lengths = [_csv_lengths(row, where) for where, row in _csv_rows(file, {_CONTEXT, _GENERATED}, missing)]
    return Lengths(file.name, [prompt for prompt, _ in lengths], [output for _, output in lengths])


def read_arrivals(file: Path) -> Trace:
    """A trace with arrivals, in the format of Azure (CSV) or of Mooncake (JSON lines), told apart by its first byte.

    ConfigError names the line of whatever is malformed, which includes arrivals that are not in order.
    """
    with file.open("rb") as opened:
        first = opened.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    requests: list[TracedRequest] = []
    for where, request in _read_mooncake(file) if first == b"{" else _read_azure(file):
        if requests and request.arrival < requests[-1].arrival:
            raise ConfigError(f"{where}: it arrives before the request above it; sort the trace by time")
        requests.append(request)
    if not requests:
        raise ConfigError(f"{file}: the trace has no requests")
    begin = requests[0].arrival
    return Trace(file.name, [replace(request, arrival=request.arrival - begin) for request in requests])


def _csv_rows(file: Path, columns: set[str], missing: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row is, and the row. Raises ConfigError, with the text `missing` when columns are."""
    with file.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
        reader = csv.DictReader(lines)
        try:
            if not columns <= set(reader.fieldnames or ()):
                raise ConfigError(missing)
            for row in reader:
                yield f"{file}, line {reader.line_num}", row
        except csv.Error as error:
            raise ConfigError(f"{file}, line {reader.line_num + 1}: {error}") from None


def _csv_lengths(row: dict[str, Any], where: str) -> tuple[int, int]:
    try:
        prompt, output = int(row[_CONTEXT]), int(row[_GENERATED])
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: lengths must be whole numbers") from None
    if prompt < 1 or output < 1:
        raise ConfigError(f"{where}: lengths must be positive")
    return prompt, output


def _read_azure(file: Path) -> Iterator[tuple[str, TracedRequest]]:
    missing = (
        f"{file}: neither JSON lines with timestamp, input_length and output_length, nor CSV whose first line names "
        f"the columns {_TIMESTAMP}, {_CONTEXT} and {_GENERATED}"
    )
    begin: datetime | None = None
    for where, row in _csv_rows(file, {_TIMESTAMP, _CONTEXT, _GENERATED}, missing):
        prompt, output = _csv_lengths(row, where)
        try:
            time = datetime.fromisoformat(row[_TIMESTAMP].strip())
            begin = begin or time
            arrival = (time - begin).total_seconds()
        except (AttributeError, TypeError, ValueError):
            raise ConfigError(f"{where}: {row[_TIMESTAMP]!r} is no time like the others") from None
        yield where, TracedRequest(arrival, prompt, output)


def _read_mooncake(file: Path) -> Iterator[tuple[str, TracedRequest]]:
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{file}, line {number}"
                yield where, _mooncake_line(line, where)


def _mooncake_line(line: str, where: str) -> TracedRequest:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(f"{where}: no JSON") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: no JSON object")
    time = row.get("timestamp")
    if isinstance(time, bool) or not isinstance(time, int | float) or not 0 <= time < 1e15:
        raise ConfigError(f"{where}: timestamp is {time!r}; it must be milliseconds since the begin")
    for name in ("input_length", "output_length"):
        if type(row.get(name)) is not int or row[name] < 1:
            raise ConfigError(f"{where}: {name} is {row.get(name)!r}; it must be a positive whole number")
    ids = row.get("hash_ids", [])
    if not isinstance(ids, list) or any(type(i) is not int or i < 0 for i in ids):
        raise ConfigError(f"{where}: hash_ids must be whole numbers that are not negative")
    blocks = -(-row["input_length"] // MOONCAKE_BLOCK)
    if ids and len(ids) != blocks:
        raise ConfigError(
            f"{where}: {len(ids)} hash_ids for {row['input_length']} tokens; blocks of {MOONCAKE_BLOCK} make {blocks}"
        )
    return TracedRequest(time / 1000, row["input_length"], row["output_length"], tuple(ids))


def fitted_lengths(count: int, seed: int = 0) -> Lengths:
    """Log-normal lengths with the trace's parameters."""
    rng = np.random.default_rng(seed)

    def draw(mean: float, deviation: float, largest: int) -> list[int]:
        values = np.exp(rng.normal(mean, deviation, count))
        drawn: list[int] = np.clip(np.rint(values), 1, largest).astype(int).tolist()
        return drawn

    return Lengths(
        "log-normal fit of the Azure conversation trace", draw(*_FIT_CONTEXT), draw(*_FIT_GENERATED)
    )
