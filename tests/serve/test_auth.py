"""API keys: what a key file may say, when it is read again, and who gets in."""

from __future__ import annotations

import asyncio
import os
import statistics
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.serve.asgi_server import echo, running
from vglm.errors import ConfigError
from vglm.serve import auth
from vglm.serve.auth import ApiKey, ApiKeys, Authentication, parse_keys

SECRET = b"s" * 32


def parsed(text: str) -> list[ApiKey]:
    return parse_keys(text, SECRET, "keys.txt", "key")


def write(path: Path, text: str) -> None:
    """Replace a file as an editor or a secret store does: by another one."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)


def test_what_a_file_may_say() -> None:
    keys = parsed(
        "# team keys\n\nsk-one\nalice:sk-two\n  bob : sk-three : max_concurrent = 4  # a comment\nalice:sk-2#2\n"
    )
    assert [(key.name, key.max_concurrent) for key in keys] == [
        ("key-3", None),
        ("alice", None),
        ("bob", 4),
        ("alice", None),
    ]
    assert keys[3].digest == auth._digest(b"sk-2#2", SECRET), "a # inside of a key is part of it"
    assert "sk-" not in repr(keys)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a:b:c", "line 1: what follows name:key must be max_concurrent=N"),
        ("a:b:max_concurrent=0", "must be max_concurrent=N with N of 1 or more"),
        ("a:b:max_concurrent=2:x", "must be max_concurrent=N"),
        (":secret", "line 1: the name before the key must be 1 to 64 printable"),
        ("x" * 65 + ":secret", "the name before the key"),
        ("ok\nname:", "line 2: a key must be printable ASCII"),
        ("se cret", "a key must be printable ASCII without spaces"),
        ("sécret", "a key must be printable ASCII"),
        ("a:secret\nb:secret", "line 2: this key is listed before, for 'a'"),
        ("a:one\na:two:max_concurrent=3", "'a' has another max_concurrent on a line before"),
    ],
)
def test_a_malformed_line_is_named_and_its_key_is_not(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=r"keys\.txt, line") as raised:
        parsed(text)
    assert reason in str(raised.value)
    assert "secret" not in str(raised.value)
    assert "sécret" not in str(raised.value)


def test_a_file_that_cannot_be_used_at_the_start(tmp_path: Path) -> None:
    missing = tmp_path / "missing.txt"
    with pytest.raises(ConfigError, match=r"cannot read the API keys in .*missing.txt: No such file"):
        ApiKeys(path=missing)
    empty = tmp_path / "empty.txt"
    empty.write_text("# nobody\n")
    with pytest.raises(ConfigError, match="lists no API keys; write one per line"):
        ApiKeys(path=empty)
    empty.write_bytes(b"key\xff")
    with pytest.raises(ConfigError, match="not valid UTF-8 at byte 3"):
        ApiKeys(path=empty)
    with pytest.raises(ConfigError, match="--api-key, line 1"):
        ApiKeys(["a b"])


def test_options_and_file_together(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("alice:k1")
    keys = ApiKeys(["k0", "ops:k9"], path)
    names = {
        key: found.name if (found := keys.match(key)) else None for key in (b"k0", b"k9", b"k1", b"k2", b"")
    }
    assert names == {b"k0": "default", b"k9": "ops", b"k1": "alice", b"k2": None, b"": None}


def match_after_refresh(keys: ApiKeys, key: bytes) -> str | None:
    async def run() -> str | None:
        await keys.refresh()
        found = keys.match(key)
        return found.name if found else None

    return asyncio.run(run())


def test_a_changed_file_is_read_again_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    path.write_text("alice:old")
    keys = ApiKeys(path=path)
    assert match_after_refresh(keys, b"old") == "alice"
    write(path, "alice:new")
    assert match_after_refresh(keys, b"new") is None, "the file was looked at a moment ago"
    monkeypatch.setattr(auth, "CHECK_EVERY", 0.0)
    keys._next_check = 0.0
    assert match_after_refresh(keys, b"new") == "alice"
    assert match_after_refresh(keys, b"old") is None
    os.utime(path, ns=(1, 1))
    reads = 0
    read = keys._read

    def counted(path: Path) -> object:
        nonlocal reads
        reads += 1
        return read(path)

    monkeypatch.setattr(keys, "_read", counted)
    for _ in range(5):
        assert match_after_refresh(keys, b"new") == "alice"
    assert reads == 1, "one change is read once"


@pytest.mark.parametrize("broken", ["", "a:b:c", b"\xff\xfe", None])
def test_a_broken_file_keeps_the_old_keys_and_says_so_once(
    broken: str | bytes | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(auth, "CHECK_EVERY", 0.0)
    path = tmp_path / "keys"
    path.write_text("alice:good")
    keys = ApiKeys(path=path)
    if broken is None:
        path.unlink()
    elif isinstance(broken, bytes):
        path.write_bytes(broken)
    else:
        write(path, broken)
    for _ in range(3):
        assert match_after_refresh(keys, b"good") == "alice"
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert str(path) in errors[0]
    assert "stay valid" in errors[0]
    write(path, "bob:other")
    assert match_after_refresh(keys, b"other") == "bob"
    assert match_after_refresh(keys, b"good") is None


def test_a_file_system_that_hangs_holds_up_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(auth, "CHECK_TIMEOUT", 0.01)
    path = tmp_path / "keys"
    path.write_text("alice:good")
    keys = ApiKeys(path=path)
    answers = threading.Event()
    monkeypatch.setattr(keys, "_reload", lambda path: answers.wait(60))

    async def run() -> None:
        await asyncio.wait_for(asyncio.gather(*(keys.refresh() for _ in range(20))), 60)
        assert keys._check is not None, "the check is still under way"
        answers.set()
        await keys._check

    asyncio.run(run())
    assert "looking at" in caplog.text


def test_a_revoked_key_never_passes_after_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first request after a quiet hour must not be judged by the keys of an hour ago."""
    path = tmp_path / "keys"
    path.write_text("alice:old")
    keys = ApiKeys(path=path)
    write(path, "alice:new")

    async def run() -> list[bool]:
        async def one() -> bool:
            await keys.refresh()
            return keys.match(b"old") is not None

        return await asyncio.gather(*(one() for _ in range(50)))

    assert not any(asyncio.run(run()))


def test_matching_takes_the_same_time_whatever_is_presented() -> None:
    keys = ApiKeys([f"user{i}:key-{i:04d}" for i in range(200)])
    presented = {"first": b"key-0000", "last": b"key-0199", "prefix": b"key-019", "other": b"x" * 8}
    times: dict[str, list[float]] = {name: [] for name in presented}
    for _ in range(60):
        for name, key in presented.items():
            started = time.perf_counter()
            for _ in range(5):
                keys.match(key)
            times[name].append(time.perf_counter() - started)
    medians = [statistics.median(values) for values in times.values()]
    assert max(medians) / min(medians) < 1.5


def test_who_gets_in(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("alice:k1\nbob:k2:max_concurrent=3\n")
    app = Authentication(echo, ApiKeys(path=path), auth.OPEN_PATHS | {"/metrics"})
    with running(app) as server, httpx.Client(base_url=server.url) as client:
        for open_path in ("/health", "/ping", "/version", "/metrics"):
            assert client.get(open_path).status_code == 200
        refused = client.post("/v1/completions", json={})
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Bearer")
        error = refused.json()["error"]
        assert error["code"] == "missing_api_key"
        assert error["type"] == "authentication_error"
        assert error["param"] is None
        for headers in (
            {"authorization": "Bearer wrong"},
            {"authorization": "Basic azE="},
            {"authorization": "Bearer"},
            {"authorization": "k1"},
            {"x-api-key": "k"},
            {"authorization": "Bearer k1 k2"},
        ):
            assert client.get("/health/", headers=headers).status_code == 401, headers
        for headers, name, limit in (
            ({"authorization": "Bearer k1"}, "alice", None),
            ({"authorization": "bEARER  k2"}, "bob", 3),
            ({"x-api-key": "k2"}, "bob", 3),
            ({"authorization": "Basic zzz", "x-api-key": "k1"}, "alice", None),
        ):
            answer = client.post("/v1/x", headers=headers, content=b"12345")
            assert answer.status_code == 200
            state = {"api_key_name": name} | ({} if limit is None else {"api_key_limit": limit})
            assert answer.json()["state"] == state
            assert answer.json()["size"] == 5


def test_a_refused_body_is_not_kept(tmp_path: Path) -> None:
    app = Authentication(echo, ApiKeys(["secret"]))
    with running(app) as server, httpx.Client(base_url=server.url) as client:
        refused = client.post("/v1/x", content=b"x" * (4 << 20))
        assert refused.status_code == 401
        assert client.get("/health").status_code == 200, "the connection goes on after the dropped body"
