"""What of RDF is refused before the parser sees it: text whose abbreviations grow far beyond the file.

A base IRI that is extended again and again, prefixes of it, contexts of JSON-LD that are copied for every object or whose
terms are made of each other: a megabyte of these would fill any memory. Real files are far from these bounds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from vglm.errors import GraphError
from vglm.graph.formats.node_link import parse_json
from vglm.graph.formats.source import Source

MAX_IRI = 16_000  # characters; an id of ours with percent signs for all its characters is shorter
_MAX_TRIPLE_TERMS = 100_000  # of RDF 1.2; deep ones overflow the parser's stack
_MAX_NESTED_TERMS = 100
_MAX_RELATIVE_BASES = 4
_MAX_PREFIXES = 5_000

_MAX_DEPTH = 100  # of JSON-LD
_MAX_COPIED = 20_000_000  # terms of contexts that may have to be copied
_MAX_CHAIN = 10  # terms that are made of a term that is made of a term ...
_MAX_TERMS = 500_000_000  # characters of all terms and of the keys of one object, written out
_MAX_KEYS = 20_000_000_000  # characters of all keys, written out

_NESTED = re.compile(rb"<<\(|\)>>")
_LONG_IRI = re.compile(rb"<[^\s<>\"]{%d}" % MAX_IRI)
_BASE = re.compile(rb"@base|\bbase\s*[<#]", re.IGNORECASE)
_ABSOLUTE_BASE = re.compile(rb"base\s*<[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_PREFIX = re.compile(rb"@prefix|\bprefix\s*[:#]|\bprefix\s+[^\s:]*:", re.IGNORECASE)


class Guarded:
    """The source as a file that the parser reads; `error` keeps what was raised while it did, `seen` counts bytes."""

    def __init__(self, source: Source) -> None:
        self.error: Exception | None = None
        self.seen = 0
        self._name = source.name
        self._chunks = self._checked(self._bytes(source))
        self._chunk, self._place = b"", 0

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, none at the end."""
        try:
            if self._place == len(self._chunk):
                self._chunk, self._place = next(self._chunks, b""), 0
        except GraphError as error:
            self.error = error
            raise
        data = self._chunk[self._place : None if size < 0 else self._place + size]
        self._place += len(data)
        self.seen += len(data)
        return data

    def _bytes(self, source: Source) -> Iterator[bytes]:
        return source.chunks()

    def _checked(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Triple terms are counted wherever they may stand, so that a deep nest is never parsed."""
        count = depth = 0
        tail = b""
        for chunk in chunks:
            text = tail + chunk
            if b"<<(" in text or b")>>" in text:
                for match in _NESTED.finditer(text):
                    opens = match[0] == b"<<("
                    count += opens
                    depth = max(0, depth + (1 if opens else -1))
                    if depth > _MAX_NESTED_TERMS or count > _MAX_TRIPLE_TERMS:
                        raise self._refused("too many triple terms, or nested too deep")
            tail = chunk[-2:]
            yield chunk

    def _refused(self, why: str) -> GraphError:
        return GraphError(f"{self._name}: {why}")


class GuardedTurtle(Guarded):
    """Turtle, in which IRIs are abbreviated."""

    def _checked(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        bases = prefixes = 0
        tail = b""
        for chunk in super()._checked(chunks):
            text = tail + chunk
            if _LONG_IRI.search(text):
                raise self._refused(f"an IRI of more than {MAX_IRI:,} bytes")
            tail = text[-MAX_IRI - 1 :]
            # What is cut in two by the end of a chunk is missed; one in a hundred thousand does not matter.
            bases += len(_BASE.findall(chunk)) - len(_ABSOLUTE_BASE.findall(chunk))
            prefixes += len(_PREFIX.findall(chunk))
            if bases > _MAX_RELATIVE_BASES:
                raise self._refused(f"more than {_MAX_RELATIVE_BASES} bases that are relative IRIs")
            if prefixes > _MAX_PREFIXES:
                raise self._refused(f"more than {_MAX_PREFIXES:,} prefixes")
            yield chunk


class GuardedJsonLd(Guarded):
    """JSON-LD, which is looked through as a whole first."""

    def _checked(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        data = b"".join(chunks)
        contexts = _Contexts()
        if not contexts.count(parse_json(data, self._name)):
            raise self._refused(f"nested more than {_MAX_DEPTH} levels deep")
        if not contexts.are_small():
            raise self._refused(
                "its contexts are too many, or grow too large: write one plain context at the top"
            )
        yield data


class _Contexts:
    """Counts what expanding a document would have to copy and to write out."""

    def __init__(self) -> None:
        self._objects = self._keys = self._contexts = self._terms = 0
        self._widest = 0  # object, by the number of its keys
        self._longest = 1  # string in a context
        self._extended = 0  # @base and @vocab, each of which may extend the one before
        self._scoped = False  # a context inside a context, which is applied wherever its term is used
        self._made_of: dict[str, set[str]] = {}  # a term -> those it is made of

    def count(self, document: Any) -> bool:
        """Looks at every value; False if they are nested too deep."""
        waiting: list[tuple[Any, int, bool]] = [(document, 0, False)]
        while waiting:
            value, depth, inside = waiting.pop()
            if depth > _MAX_DEPTH:
                return False
            if isinstance(value, dict):
                self._objects += 1
                self._keys += len(value)
                self._widest = max(self._widest, len(value))
                for key, item in value.items():
                    if inside:
                        self._add_term(key, item)
                    if key == "@context":
                        self._contexts += 1
                        self._scoped = self._scoped or inside
                    waiting.append((item, depth + 1, inside or key == "@context"))
            elif isinstance(value, list):
                self._contexts += len(value) if inside else 0
                waiting.extend((item, depth + 1, inside) for item in value)
        return True

    def are_small(self) -> bool:
        """True if expanding takes a reasonable time and memory."""
        made = set(self._made_of)
        for _ in range(_MAX_CHAIN):
            made = {term for term in made if not made.isdisjoint(self._made_of[term])}
        length = self._longest * (_MAX_CHAIN + self._extended)
        return (
            not made
            and self._terms * (self._contexts + (self._objects if self._scoped else 0)) <= _MAX_COPIED
            and (self._terms + self._widest) * length <= _MAX_TERMS
            and self._keys * length <= _MAX_KEYS
        )

    def _add_term(self, term: str, value: Any) -> None:
        self._terms += 1
        self._extended += term in ("@base", "@vocab")
        given = [value.get("@id"), value.get("@reverse")] if isinstance(value, dict) else [value]
        said = [text for text in given if isinstance(text, str)]
        self._longest = max(self._longest, len(term), *map(len, said))
        if not term.startswith("@"):
            parts = self._made_of.setdefault(term, set())
            parts.update(text.partition(":")[0] for text in (*said, term))
            parts.discard(term)
