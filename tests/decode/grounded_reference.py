"""A naive twin of grounded decoding: the set of all legal texts, and what follows from it. Slow, and obviously right."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import permutations, product
from typing import Any

import numpy as np

from vglm.decode.grounded import GroundedDecoder, Grounding
from vglm.decode.grounded.decoder import GroundedText
from vglm.graph.graph import Graph

END = 1


class TinyTokenizer:
    """A vocabulary of given byte strings; the longest token wins. Id 0 is a control token, 1 ends a text, 2 belongs to a
    template.
    """

    special_ids = frozenset({0, END})
    added_ids = frozenset({0, END, 2})
    eos_ids = (END,)
    bos_id = None

    def __init__(self, tokens: Iterable[bytes]) -> None:
        self.tokens = [b"<s>", b"</s>", b"<think>", *dict.fromkeys(tokens)]
        self._by_bytes = {token: i for i, token in enumerate(self.tokens) if i > 2}
        self._longest = max(map(len, self._by_bytes))

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def token_bytes(self, token_id: int) -> bytes:
        return self.tokens[token_id] if 0 <= token_id < len(self.tokens) else b""

    def id_to_token(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("latin-1")

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        kept = (i for i in ids if not (skip_special and i in self.special_ids))
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")

    def encode(self, text: str, add_special: bool = True, allow_special_tokens: bool = True) -> list[int]:
        raw, ids, start = text.encode(), [], 0
        while start < len(raw):
            sizes = range(min(self._longest, len(raw) - start), 0, -1)
            size = next((n for n in sizes if raw[start : start + n] in self._by_bytes), 0)
            if not size:
                break
            ids.append(self._by_bytes[raw[start : start + size]])
            start += size
        return ids


def legal_texts(grounding: Grounding, graph: Graph, json_strings: bool = False) -> set[bytes]:
    """All texts of an answer, a walk or a sequence of them."""
    if grounding.kind == "answer":
        return set(_answers(grounding, graph))
    if grounding.kind == "walk":
        return {text.encode() for text, _ in _walks(grounding, graph)}
    texts: set[bytes] = {b""}
    parts: Any = grounding.parts
    ends: dict[bytes, set[str]] = {}
    for number, part in enumerate(parts):
        before = {text + str(grounding.separator).encode() for text in texts} if number else texts
        if part.of_walk:
            glue = str(grounding.separator).encode()
            texts = {text + glue + name.encode() for text in texts for name in ends[text]}
        elif part.kind == "walk":
            ends = {}
            for (text, node), prefix in product(_walks(part, graph), before):
                ends.setdefault(prefix + text.encode(), set()).add(graph.columns.names[node])
            texts = set(ends)
        else:
            texts = {prefix + text for prefix in before for text in legal_texts(part, graph)}
    return texts


def allowed_nodes(grounding: Grounding, graph: Graph) -> list[int]:
    """The nodes of the types and candidates that have a name."""
    types, candidates = list(grounding.types), list(grounding.candidates)
    return [
        i
        for i, node in enumerate(graph.nodes())
        if node.name and (not types or node.type in types) and (not candidates or node.id in candidates)
    ]


def _answers(grounding: Grounding, graph: Graph) -> Iterator[bytes]:
    names = sorted({graph.columns.names[i] for i in allowed_nodes(grounding, graph)})
    for count in range(int(grounding.min_count or 0), grounding.count + 1):
        for chosen in permutations(names, count):
            yield str(grounding.separator).join(chosen).encode()


def _walks(grounding: Grounding, graph: Graph) -> Iterator[tuple[str, int]]:
    """(text, last node) of every walk."""
    ends, start, relations = (
        set(allowed_nodes(grounding, graph)),
        list(grounding.start),
        list(grounding.relations),
    )
    edges = [(graph.index_of(e.source), e.relation, graph.index_of(e.target)) for e in graph.edges()]
    edges = [e for e in edges if not relations or e[1] in relations]
    named = [i for i, node in enumerate(graph.nodes()) if node.name]
    moves = [(s, t, f" -> {r} -> {graph.columns.names[t]}") for s, r, t in edges]
    if grounding.inverse:
        moves += [(t, s, f" <- {r} <- {graph.columns.names[s]}") for s, r, t in edges]
    walks = [(graph.columns.names[i], i) for i in named if not start or graph.id_of(i) in start]
    for hops in range(grounding.max_hops + 1):
        if hops >= grounding.min_hops:
            yield from ((text, node) for text, node in walks if node in ends)
        walks = [(text + step, t) for text, node in walks for s, t, step in moves if s == node and t in named]


def legal_json(schema: Any, graph: Graph) -> list[str]:
    """All texts of a schema of few values."""
    if "x-graph" in schema:
        return _legal_bound(schema["x-graph"], graph)
    if "enum" in schema:
        return [json.dumps(value, ensure_ascii=False) for value in schema["enum"]]
    if "anyOf" in schema:
        return [text for inner in schema["anyOf"] for text in legal_json(inner, graph)]
    if schema["type"] == "boolean":
        return ["true", "false"]
    if schema["type"] == "array":
        items = legal_json(schema["items"], graph)
        counts = range(schema.get("minItems", 0), schema["maxItems"] + 1)
        choose = permutations if schema.get("uniqueItems") else lambda values, n: product(values, repeat=n)
        return [f"[{', '.join(chosen)}]" for n in counts for chosen in choose(items, n)]
    objects: list[list[str]] = [[]]
    for name, inner in schema["properties"].items():
        texts = [f"{json.dumps(name, ensure_ascii=False)}: {text}" for text in legal_json(inner, graph)]
        more = [[*written, text] for written in objects for text in texts]
        objects = more if name in schema.get("required", []) else more + objects
    return [f"{{{', '.join(written)}}}" for written in objects]


def _legal_bound(bound: Any, graph: Graph) -> list[str]:
    ((what, options),) = bound.items() if isinstance(bound, dict) else [(bound, {})]
    if what == "relation":
        return [json.dumps(r, ensure_ascii=False) for r in graph.columns.relation_names]
    nodes = allowed_nodes(Grounding(types=options.get("types", ())), graph)
    if what == "entity":
        return sorted({json.dumps(graph.columns.names[i], ensure_ascii=False) for i in nodes})
    found = set()
    for edge in graph.edges():
        if graph.name_of(edge.source) and graph.index_of(edge.target) in nodes:
            value = {
                "source": graph.name_of(edge.source),
                "relation": edge.relation,
                "target": graph.name_of(edge.target),
            }
            found.add(json.dumps(value, ensure_ascii=False))
    return sorted(found)


class Twin:
    """Where a text is in a set of legal ones."""

    def __init__(self, tokenizer: TinyTokenizer, texts: Iterable[bytes]) -> None:
        self.tokenizer = tokenizer
        self.texts = set(texts)
        self.known = b""

    def left(self, known: bytes) -> list[bytes]:
        return [text for text in self.texts if text.startswith(known)]

    def mask(self) -> set[int]:
        """The tokens that may come next."""
        left = self.left(self.known)
        allowed = {
            i
            for i, token in enumerate(self.tokenizer.tokens)
            if i not in self.tokenizer.added_ids and any(t.startswith(self.known + token) for t in left)
        }
        return allowed | ({END} if self.known in self.texts else set())

    @property
    def finished(self) -> bool:
        return self.left(self.known) == [self.known]

    def forced(self) -> list[int]:
        """The tokens that follow in any case: the tokenizer's own of the bytes that follow in any case, up to where a
        token might begin that goes on beyond these bytes.
        """
        forced = b""
        while self.known + forced not in self.texts:
            following = {text[len(self.known + forced)] for text in self.left(self.known + forced)}
            if len(following) != 1:
                break
            forced += bytes(following)
        start = next((i for i, byte in enumerate(forced) if byte & 0xC0 != 0x80), len(forced))
        lead = [self.tokenizer._by_bytes[forced[i : i + 1]] for i in range(start)]
        whole = forced[start:].decode("utf-8", "ignore")
        taken, place = [], 0
        for token in lead + self.tokenizer.encode(whole):
            if self._crossed(forced, place):
                break
            taken.append(token)
            place += len(self.tokenizer.tokens[token])
        self.known += forced[:place]
        return taken

    def _crossed(self, forced: bytes, place: int) -> bool:
        before, rest = self.known + forced[:place], forced[place:]
        longer = [
            token
            for i, token in enumerate(self.tokenizer.tokens)
            if i not in self.tokenizer.added_ids and len(token) > len(rest) and token.startswith(rest)
        ]
        return any(text.startswith(before + token) for token in longer for text in self.left(before))


def mask_of(text: GroundedText, vocab_size: int) -> set[int]:
    """The tokens whose bits a constraint sets."""
    row = np.full(-(-vocab_size // 32), 0xFFFFFFFF, np.uint32)
    text.fill_mask(row)
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def compare(decoder: GroundedDecoder, twin: Twin, choose: Any) -> bytes:
    """Follow one text with both, chosen token by token; masks and forced tokens must be equal at every state. Returns the
    text.
    """
    text = decoder.start()
    assert isinstance(text, GroundedText)
    assert text.begin() == twin.forced()
    while not text.finished:
        assert not twin.finished
        mask = twin.mask()
        assert mask
        assert mask_of(text, twin.tokenizer.vocab_size) == mask
        token = choose(sorted(mask))
        if token == END:
            assert text.accept(END) == []
            assert text.finished
            break
        twin.known += twin.tokenizer.tokens[token]
        assert text.accept(token) == twin.forced()
    assert twin.known in twin.texts
    return twin.known
