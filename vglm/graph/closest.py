"""Ids that a caller gives: found in a graph, or refused with what was probably meant."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Sequence

import numpy as np

from vglm.errors import GraphError
from vglm.graph.graph import Graph, Ints
from vglm.graph.limits import shown
from vglm.graph.linking import link
from vglm.graph.words import similarity

MAX_IDS = 256
_SUGGESTIONS = 3
_LONGEST = 64  # characters of ids that are compared
_SIMILAR = 0.7
_WORD = 4  # letters of a word that says something
_COMMON = 100  # nodes that share a word which says nothing
_MOST_SEARCHED = 100_000  # nodes


def known_nodes(graph: Graph, ids: Sequence[str], where: str) -> Ints:
    """Indices int32[n] of some ids, in their order, none twice.

    Raises GraphError for an id that the graph does not have, naming the closest ones; `where` is what the message
    calls the list.
    """
    if isinstance(ids, str | bytes) or not isinstance(
        ids, Sequence
    ):  # a set would have another order each time
        raise GraphError(f"{where}: expected a list of node ids, found {shown(ids)}")
    if len(ids) > MAX_IDS:
        raise GraphError(f"{where}: {len(ids):,} ids, the limit is {MAX_IDS}")
    found: dict[int, None] = {}
    for position, node_id in enumerate(ids):
        node = graph.columns.ids.find(node_id) if isinstance(node_id, str) else -1
        if node < 0:
            near = closest(graph, node_id) if isinstance(node_id, str) else []
            hint = f"; the closest are {', '.join(near)}" if near else ""
            raise GraphError(f"{where}[{position}]: the graph has no node with the id {shown(node_id)}{hint}")
        found[node] = None
    return np.array(list(found), np.int32)


def closest(graph: Graph, text: str, types: Collection[str] = ()) -> list[str]:
    """Nodes, only of `types` if any are given, that `text` may stand for, as "name (id)": those with a name like it, then
    those with an id like it.
    """
    columns = graph.columns
    text = text[: 4 * _LONGEST]
    ids = [text.upper(), text.lower(), text.strip()]
    place = bisect_left(columns.ids, text)
    around = (columns.ids[i] for i in range(max(place - 2, 0), min(place + 2, len(columns.ids))))
    ids += [node_id for node_id in around if similarity(text[:_LONGEST], node_id[:_LONGEST]) >= _SIMILAR]
    named = [entity.id for mention in link(graph, text, types) for entity in mention.entities]
    found = [i for i in dict.fromkeys([*named, *ids]) if columns.ids.find(i) >= 0]
    found = [i for i in found if not types or graph.node(i).type in types]
    return [f"{shown(graph.name_of(node_id))} ({shown(node_id)})" for node_id in found[:_SUGGESTIONS]]


def sharing_a_word(graph: Graph, text: str, types: Collection[str]) -> list[str]:
    """Nodes of `types`, as "name (id)", whose name or an alias has the rarest word of a text that any has: the shortest names.

    For a message about a text that names nothing; looks at every name, so not at those of a large graph.
    """
    columns = graph.columns
    if graph.num_nodes > _MOST_SEARCHED:
        return []
    words = [word for word in re.findall(r"\w+", text[: 4 * _LONGEST].casefold()) if len(word) >= _WORD]
    having: dict[str, list[int]] = {word: [] for word in words}
    for node, both in enumerate(zip(columns.names, columns.aliases, strict=True)):
        names = " ".join(("", *both)).casefold().replace('"', " ")  # aliases are a JSON list
        for word, nodes in having.items():
            if f" {word}" in names and columns.type_names[columns.node_types[node]] in types:
                nodes.append(node)
    rarest = min((nodes for nodes in having.values() if nodes), key=len, default=[])
    if len(rarest) > _COMMON:
        return []
    best = sorted(rarest, key=lambda node: (len(columns.names[node]), node))[:_SUGGESTIONS]
    return [f"{shown(columns.names[node])} ({shown(columns.ids[node])})" for node in best]
