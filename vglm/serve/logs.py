"""Structured logs: one line for each event, written by a thread of its own.

Whoever logs puts a record into a bounded queue and goes on. What cannot be written (a full disk, a closed or blocked
stderr) is dropped and counted: logging never holds up the event loop and never ends the server.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any, TextIO

import orjson

QUEUE_SIZE = 1 << 15  # lines
BATCH = 256  # lines in one write
STOP_TIMEOUT = 2.0  # seconds that the end of the server waits for its last lines
LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
_QUIET = ("uvicorn.access", "asyncio", "opentelemetry", "urllib3")  # only their warnings are wanted


def log_event(logger: logging.Logger, level: int, event: str, fields: Mapping[str, Any]) -> None:
    """Log an event and what there is to say of it; fields that are None are left out."""
    if logger.isEnabledFor(level):
        logger.log(level, event, extra={"fields": fields})


class LogWriter(logging.Handler):
    """Takes records of any thread and writes them as lines of text or JSON."""

    def __init__(self, stream: TextIO, log_format: str = "text", queue_size: int = QUEUE_SIZE) -> None:
        super().__init__()
        self.dropped = 0  # lines, since the start
        self._stream = stream
        self._line = _json_line if log_format == "json" else _text_line
        self._queue: queue.Queue[logging.LogRecord | None] = queue.Queue(queue_size)
        self._told = 0  # of the dropped ones
        self._thread = threading.Thread(target=self._run, name="vglm-logs", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put a record into the queue; drop it when there is no room."""
        try:
            record.message = record.getMessage()
        except Exception as error:  # the arguments do not fit: say so rather than raise in whoever logs
            record.message = f"{record.msg} {record.args!r} ({error})"
        record.args = None
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def stop(self, timeout: float = STOP_TIMEOUT) -> bool:
        """Write what is left; False when that takes longer than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        try:
            self._queue.put(None, timeout=timeout)
        except queue.Full:
            return False
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        going_on = True
        while going_on:
            records = [self._queue.get()]
            while len(records) < BATCH and not self._queue.empty():
                records.append(self._queue.get_nowait())
            going_on = records[-1] is not None
            self._write([self._format(record) for record in records if record is not None])

    def _format(self, record: logging.LogRecord) -> str:
        try:
            return self._line(record)
        except Exception as error:  # a field that has no text
            return self._line(_plain_record(logging.ERROR, f"a log line could not be made: {error!r}"))

    def _write(self, lines: list[str]) -> None:
        dropped = self.dropped
        if dropped > self._told:
            lines.append(
                self._line(_plain_record(logging.WARNING, f"{dropped - self._told} log lines were dropped"))
            )
        try:
            self._stream.write("".join(lines))
            self._stream.flush()
            self._told = dropped
        except (OSError, ValueError):  # a full disk, a closed stream
            self.dropped += len(lines)


def configure_logging(
    level: str = "info", log_format: str = "text", stream: TextIO | None = None
) -> LogWriter:
    """Send the log of every library to one writer; `stream` is stderr unless given. Stop the writer at the end."""
    writer = LogWriter(sys.stderr if stream is None else stream, log_format)
    root = logging.getLogger()
    root.handlers = [writer]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    return writer


def _plain_record(level: int, message: str) -> logging.LogRecord:
    record = logging.LogRecord("vglm.serve.logs", level, "", 0, message, None, None)
    record.message = message
    return record


def _timestamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _traceback(record: logging.LogRecord) -> str | None:
    if not record.exc_info:
        return None
    return "".join(traceback.format_exception(*record.exc_info)).rstrip()


def _json_line(record: logging.LogRecord) -> str:
    entry: dict[str, Any] = {
        "ts": _timestamp(record),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": record.message,
    }
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    entry |= {name: value for name, value in fields.items() if value is not None}
    if (trace := _traceback(record)) is not None:
        entry["traceback"] = trace
    return orjson.dumps(entry, default=str).decode() + "\n"


def _text_line(record: logging.LogRecord) -> str:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    parts = [_timestamp(record), f"{record.levelname:<7}", _one_line(record.message)]
    parts += [f"{name}={_text(value)}" for name, value in fields.items() if value is not None]
    line = " ".join(parts) + "\n"
    trace = _traceback(record)
    return line if trace is None else line + "".join(f"    {text}\n" for text in trace.splitlines())


def _text(value: Any) -> str:
    """A value that ends where it seems to: text with spaces or quotes is written as JSON."""
    if isinstance(value, str):
        plain = value.isascii() and value.isprintable() and value and not set(value) & set(' "=')
        return value if plain else orjson.dumps(value).decode()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _one_line(message: str) -> str:
    return (
        message
        if message.isprintable()
        else "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    )
