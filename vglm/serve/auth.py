"""API keys: from options and from a file that may change while the server runs."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from vglm.errors import ConfigError
from vglm.serve.refusal import refuse

log = logging.getLogger("vglm.serve.auth")

OPEN_PATHS = frozenset({"/health", "/ping", "/version"})
CHECK_EVERY = 1.0  # seconds between two looks at the key file
CHECK_TIMEOUT = 0.5  # seconds that requests wait for such a look, on a file system that hangs
MAX_FILE_BYTES = 4 << 20
_COMMENT = re.compile(r"(?:^|\s)#")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Who a key belongs to. `digest` is the key under a secret of this process; the key itself is not kept."""

    name: str
    digest: bytes
    max_concurrent: int | None = None  # unfinished requests of all keys of this name


class ApiKeys:
    """The keys that are accepted now. Used in the event loop only."""

    def __init__(self, keys: Sequence[str] = (), path: str | Path | None = None) -> None:
        """`keys`: accepted besides those of the file; "name:key" or just the key. `path`: see `parse_keys`.

        Raises ConfigError when a key is malformed or the file cannot be read.
        """
        self._secret = secrets.token_bytes(32)
        self._path = None if path is None else Path(path)
        self._fixed = parse_keys("\n".join(keys), self._secret, "--api-key", "default") if keys else []
        self._seen: tuple[int, ...] | str = ""  # what the file looked like, or why it could not be looked at
        self._next_check = 0.0
        self._check: asyncio.Future[None] | None = None
        self._keys = self._fixed
        if self._path is not None:
            self._keys, self._seen = self._read(self._path)

    def __len__(self) -> int:
        return len(self._keys)

    def match(self, presented: bytes) -> ApiKey | None:
        """The key that was presented, or None. Takes the same time whichever it is, and whether it is one."""
        digest = _digest(presented, self._secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    async def refresh(self) -> None:
        """Take over a changed file: looked at no more than once a second, in another thread."""
        if self._path is None:
            return
        if self._check is None:
            now = time.monotonic()
            if now < self._next_check:
                return
            self._next_check = now + CHECK_EVERY
            self._check = asyncio.ensure_future(asyncio.to_thread(self._reload, self._path))
            self._check.add_done_callback(self._checked)
        # Who comes while the file is looked at waits too: a key that was taken away must not pass.
        done, _ = await asyncio.wait([self._check], timeout=CHECK_TIMEOUT)
        if not done:
            log.warning("looking at %s takes long; the keys known so far stay valid", self._path)

    def _checked(self, check: asyncio.Future[None]) -> None:
        self._check = None
        if not check.cancelled() and (error := check.exception()) is not None:
            log.error("the key file could not be looked at; the keys known so far stay valid", exc_info=error)

    def _reload(self, path: Path) -> None:
        """Read the file if it has changed. A file that cannot be used leaves the keys as they are."""
        signature: tuple[int, ...] | str
        try:
            signature = _signature(os.stat(path))
        except OSError as error:
            signature = f"cannot read the API keys in {path}: {error.strerror or error}"
        if signature == self._seen:
            return
        self._seen = signature
        try:
            if isinstance(signature, str):
                raise ConfigError(signature)
            self._keys, self._seen = self._read(path)
        except ConfigError as error:
            log.error("%s; the keys known so far stay valid", error)
        else:
            log.info("%d API keys after a change of %s", len(self._keys), path)

    def _read(self, path: Path) -> tuple[list[ApiKey], tuple[int, ...]]:
        """The file's keys and those of the options, and what the file looked like. Raises ConfigError."""
        try:
            with path.open("rb") as file:
                signature = _signature(os.fstat(file.fileno()))
                data = file.read(MAX_FILE_BYTES + 1)
            text = data.decode("utf-8")
        except OSError as error:
            raise ConfigError(f"cannot read the API keys in {path}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{path} is not valid UTF-8 at byte {error.start}; it must list API keys"
            ) from error
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"{path} has more than {MAX_FILE_BYTES} bytes; it must list API keys")
        keys = parse_keys(text, self._secret, str(path), "key")
        if not keys:
            raise ConfigError(f"{path} lists no API keys; write one per line, as in name:key")
        return self._fixed + keys, signature


def parse_keys(text: str, secret: bytes, where: str, unnamed: str) -> list[ApiKey]:
    """The keys in a text: one per line, `key`, `name:key` or `name:key:max_concurrent=N`; a # begins a comment.

    A name may have several keys. A key without one is called after `unnamed` and its line. Raises ConfigError, which
    names `where` and the line but never a key.
    """
    keys: dict[bytes, ApiKey] = {}
    limits: dict[str, int | None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        content = _COMMENT.split(line, 1)[0].strip()
        if not content:
            continue
        place = f"{where}, line {number}"
        first, *rest = (part.strip() for part in content.split(":"))
        name, key = (first, rest[0]) if rest else (unnamed if number == 1 else f"{unnamed}-{number}", first)
        limit = _limit(rest[1:], place)
        if not name.isprintable() or not name or len(name) > 64:
            raise ConfigError(f"{place}: the name before the key must be 1 to 64 printable characters")
        if not key.isascii() or not key.isprintable() or not key or " " in key:
            raise ConfigError(f"{place}: a key must be printable ASCII without spaces; write name:key")
        digest = _digest(key.encode(), secret)
        if digest in keys:
            raise ConfigError(f"{place}: this key is listed before, for {keys[digest].name!r}; remove one")
        if limits.setdefault(name, limit) != limit:
            raise ConfigError(f"{place}: {name!r} has another max_concurrent on a line before; give it once")
        keys[digest] = ApiKey(name, digest, limit)
    return list(keys.values())


def _limit(options: list[str], place: str) -> int | None:
    if not options:
        return None
    option, _, value = options[0].partition("=")
    if (
        len(options) > 1
        or option.strip() != "max_concurrent"
        or not value.strip().isdecimal()
        or int(value) < 1
    ):
        raise ConfigError(f"{place}: what follows name:key must be max_concurrent=N with N of 1 or more")
    return int(value)


def _digest(key: bytes, secret: bytes) -> bytes:
    return blake2b(key, key=secret, digest_size=32).digest()


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev


class Authentication:
    """ASGI: lets requests with an accepted key through, and whoever asks for an open path.

    What stands behind finds the key's name in `scope["state"]["api_key_name"]`, and what is allowed at once under that name
    in `scope["state"]["api_key_limit"]` (None: the server's own limit).
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, open_paths: Collection[str] = OPEN_PATHS) -> None:
        self.app = app
        self.keys = keys
        self.open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or answer 401 (ASGI)."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http" or scope["path"] in self.open_paths:
            await self.app(scope, receive, send)
            return
        await self.keys.refresh()
        presented = presented_key(scope)
        key = None if presented is None else self.keys.match(presented)
        if key is None:
            await _refuse(send, presented is not None)
            return
        state = scope.setdefault("state", {})
        state["api_key_name"] = key.name
        state["api_key_limit"] = key.max_concurrent
        await self.app(scope, receive, send)


def presented_key(scope: Scope) -> bytes | None:
    """The key in `Authorization: Bearer KEY`, or else in `x-api-key`."""
    other = None
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer" and key.strip():
                return bytes(key.strip())
        elif name == b"x-api-key":
            other = bytes(value.strip())
    return other


async def _refuse(send: Send, presented: bool) -> None:
    if presented:
        message, code = "this API key is not valid; ask whoever runs the server for one", "invalid_api_key"
    else:
        message, code = "an API key is needed; send it as in: Authorization: Bearer KEY", "missing_api_key"
    await refuse(send, 401, message, code, [(b"www-authenticate", b'Bearer realm="vglm"')])
