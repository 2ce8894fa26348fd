"""HTTP responses and event streams, split anywhere, whole or damaged."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vglm.bench.event_stream import EventParser
from vglm.bench.http_parser import ProtocolError, ResponseParser

CUTS = st.lists(st.integers(0, 2000), max_size=30)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut at these places (modulo its length)."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


def read(data: bytes, cuts: list[int]) -> tuple[ResponseParser, bytes]:
    parser, body = ResponseParser(), b""
    for piece in pieces(data, cuts):
        body += parser.feed(piece)
    return parser, body


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: a/b\r\n\r\n"


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), CUTS)
def test_chunks_come_out_as_they_went_in(parts: list[bytes], cuts: list[int]) -> None:
    wire = (
        CHUNKED
        + b"".join(b"%X;ext=1\r\n%b\r\n" % (len(part), part) for part in parts)
        + b"0\r\nTrailer: x\r\n\r\n"
    )
    parser, body = read(wire, cuts)
    assert body == b"".join(parts)
    assert parser.complete
    assert parser.keep_alive
    assert (parser.status, parser.headers["content-type"]) == (200, "a/b")


@given(st.binary(max_size=100), CUTS)
def test_a_body_of_known_length(body: bytes, cuts: list[int]) -> None:
    wire = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )
    parser, found = read(wire, cuts)
    assert (parser.status, found, parser.complete) == (404, body, True)


@given(st.binary(max_size=100), CUTS)
def test_a_body_that_ends_with_the_connection(body: bytes, cuts: list[int]) -> None:
    parser, found = read(b"HTTP/1.0 200 OK\r\n\r\n" + body, cuts)
    assert found == body
    assert not parser.complete
    assert parser.eof()
    assert not parser.keep_alive


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.1 200\r\nConnection: close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n", True),
    ],
)
def test_whether_a_connection_can_be_used_again(head: bytes, kept: bool) -> None:
    parser, _ = read(head + b"Content-Length: 0\r\n\r\n", [])
    assert parser.complete
    assert parser.keep_alive is kept


def test_a_response_without_a_body_ends_at_once() -> None:
    assert read(b"HTTP/1.1 204 No Content\r\n\r\n", [])[0].complete


def test_a_response_that_breaks_off_is_not_complete() -> None:
    for wire in (
        b"HTTP/1.1 200 OK\r\nContent-Le",
        CHUNKED + b"5\r\nab",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\na",
    ):
        assert not read(wire, [])[0].eof()


@pytest.mark.parametrize(
    ("wire", "says"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no HTTP response"),
        (b"HTTP/2 200\r\n\r\n", "status line"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "status line"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "no header"),
        (b"HTTP/1.1 200 OK\r\nx y : 1\r\n\r\n", "no header"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70000, "no HTTP response"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n", "two different"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -3\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3_0\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab", "1 bytes (more|after)"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n", "Transfer-Encoding"),
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n", "compressed"),
        (CHUNKED + b"xyz\r\n", "no chunk size"),
        (CHUNKED + b"+5\r\nabcde\r\n", "no chunk size"),
        (CHUNKED + b"1_0\r\n", "no chunk size"),
        (CHUNKED + b"\r\n", "no chunk size"),
        (CHUNKED + b"f" * 16 + b"\r\n", "no chunk size"),
        (CHUNKED + b"z" * 2000, "no chunk size"),
        (CHUNKED + b"2\r\nabc\r\n", "longer than its size"),
        (CHUNKED + b"0\r\n\r\nHTTP/1.1", "after the end"),
    ],
)
def test_what_is_no_http_is_refused(wire: bytes, says: str) -> None:
    for cuts in ([], list(range(len(wire)))):
        with pytest.raises(ProtocolError, match=says):
            read(wire, cuts[:300])


def test_bytes_after_the_end_are_refused() -> None:
    parser, _ = read(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", [])
    with pytest.raises(ProtocolError, match="after the end"):
        parser.feed(b"x")


def reference(stream: bytes) -> list[bytes]:
    """The events of a whole stream, by the letter of the standard's algorithm: line by line."""
    stream = stream.removeprefix(b"\xef\xbb\xbf")
    lines, line, i = [], b"", 0
    while i < len(stream):
        if stream[i : i + 2] == b"\r\n":
            lines.append(line)
            line, i = b"", i + 2
        elif stream[i : i + 1] in (b"\r", b"\n"):
            lines.append(line)
            line, i = b"", i + 1
        else:
            line, i = line + stream[i : i + 1], i + 1
    events: list[bytes] = []
    data: list[bytes] = []
    for line in lines:
        if not line:
            if data:
                events.append(b"\n".join(data))
            data = []
        elif not line.startswith(b":"):
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value[1:] if value.startswith(b" ") else value)
    return events


FRAGMENTS = st.lists(
    st.sampled_from(
        [b"data: ", b"data:", b"data", b"{}", b"[DONE]", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b":", b": ping",
         b"event: x", b"id: 1", b"retry: 5", b" ", b"x", b"\xef\xbb\xbf", b"\xff\x00", "é".encode(), b"dat"]
    ),
    max_size=25,
).map(b"".join)  # fmt: skip


@settings(max_examples=400)
@given(FRAGMENTS, CUTS)
def test_events_are_those_of_the_standard(stream: bytes, cuts: list[int]) -> None:
    parser = EventParser()
    found = [payload for piece in pieces(stream, cuts) for payload in parser.feed(piece)]
    assert found == reference(stream)


def test_one_byte_at_a_time() -> None:
    stream = b': hello\r\n\r\ndata: {"a": 1}\r\n\r\nevent: x\ndata: 1\ndata:2\n\ndata: [DONE]\n\n'
    parser = EventParser()
    assert [p for i in range(len(stream)) for p in parser.feed(stream[i : i + 1])] == [
        b'{"a": 1}',
        b"1\n2",
        b"[DONE]",
    ]
    assert not parser.incomplete


def test_a_cut_off_event_is_noticed() -> None:
    parser = EventParser()
    parser.feed(b"data: 1\n\ndata: 2")
    assert parser.incomplete
    quiet = EventParser()
    quiet.feed(b"data: 1\n\n: keep-alive\n")
    assert not quiet.incomplete


def test_an_endless_event_is_refused() -> None:
    parser = EventParser()
    piece = b"data: " + b"x" * (15 << 20)
    parser.feed(piece)
    with pytest.raises(ProtocolError, match="16 MB"):
        parser.feed(piece)
