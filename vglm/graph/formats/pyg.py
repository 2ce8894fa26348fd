"""Graphs of PyTorch Geometric: any object with the attributes of its `Data` or `HeteroData`, tensors or arrays.

Neither torch nor torch_geometric is imported: a tensor is what can be detached, brought to the CPU and made an array.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vglm.errors import GraphError
from vglm.graph.build import DEFAULT_RELATION, GraphBuilder
from vglm.graph.graph import Graph
from vglm.graph.limits import Limits, shown

Array = npt.NDArray[Any]
Names = Sequence[str] | Mapping[str, Sequence[str]] | None


def graph_from_pyg(
    data: Any,
    limits: Limits,
    ids: Names,
    names: Names,
    types: Sequence[str] | None,
    relations: Sequence[str] | None,
    attributes: Iterable[str],
) -> Graph:
    """See `Graph.from_pyg`."""
    wanted = (attributes,) if isinstance(attributes, str) else tuple(attributes)
    builder = GraphBuilder(limits)
    if hasattr(data, "edge_types") and hasattr(data, "node_types"):
        if types is not None or relations is not None:
            raise GraphError("types, relations: a HeteroData has its own")
        _add_hetero(builder, data, limits, ids, names, wanted)
    elif hasattr(data, "edge_index"):
        _add_homogeneous(builder, data, limits, ids, names, types, relations, wanted)
    else:
        raise GraphError(f"pyg: expected Data or HeteroData of torch_geometric, found {shown(data)}")
    return builder.build()


def _add_homogeneous(
    builder: GraphBuilder,
    data: Any,
    limits: Limits,
    ids: Names,
    names: Names,
    types: Sequence[str] | None,
    relations: Sequence[str] | None,
    wanted: tuple[str, ...],
) -> None:
    edges = _edge_index(data, "edge_index", limits)
    count = _num_nodes(data, "data", edges, limits)
    _check_range(edges, (count, count), "edge_index")
    node_ids = _texts(ids, count, "ids") or list(map(str, range(count)))
    kinds = _labels(data, "node_type", types, count, "types") or [""] * count
    labels = _labels(data, "edge_type", relations, edges.shape[1], "relations")
    node_names = _texts(names, count, "names")
    node_ids = _add_nodes(builder, data, node_ids, node_names, kinds, wanted, "nodes")
    _add_edges(builder, data, edges, (node_ids, node_ids), labels or DEFAULT_RELATION, wanted, "edge_index")


def _add_hetero(
    builder: GraphBuilder, data: Any, limits: Limits, ids: Names, names: Names, wanted: tuple[str, ...]
) -> None:
    for given, option in ((ids, "ids"), (names, "names")):
        if given is not None and not isinstance(given, Mapping):
            raise GraphError(f"{option}: expected a list for each node type, found {shown(given)}")
    edge_types = [_edge_type(edge_type) for edge_type in data.edge_types]
    stores = {edge_type: data[edge_type] for edge_type in edge_types}
    indices = {
        edge_type: _edge_index(store, f"{edge_type}.edge_index", limits)
        for edge_type, store in stores.items()
    }
    all_ids: dict[str, list[str]] = {}
    for kind in data.node_types:
        ends = [
            index[row : row + 1]
            for edge_type, index in indices.items()
            for row in (0, 1)
            if edge_type[2 * row] == kind
        ]
        edges = np.concatenate([np.zeros((1, 0), np.int64), *ends], axis=1)
        count = _num_nodes(data[kind], shown(kind), edges, limits)
        own_ids = _texts((ids or {}).get(kind), count, f"ids[{shown(kind)}]")  # type: ignore[union-attr]
        own_names = _texts((names or {}).get(kind), count, f"names[{shown(kind)}]")  # type: ignore[union-attr]
        own_ids = own_ids or [f"{kind}:{position}" for position in range(count)]
        kinds = [kind] * count
        all_ids[kind] = _add_nodes(builder, data[kind], own_ids, own_names, kinds, wanted, shown(kind))
    for edge_type, index in indices.items():
        source, relation, target = edge_type
        for kind in (source, target):
            if kind not in all_ids:
                raise GraphError(f"{edge_type}: no node type is called {shown(kind)}")
        place = f"{edge_type}.edge_index"
        _check_range(index, (len(all_ids[source]), len(all_ids[target])), place)
        ends_ids = all_ids[source], all_ids[target]
        _add_edges(builder, stores[edge_type], index, ends_ids, relation, wanted, place)


def _add_nodes(
    builder: GraphBuilder,
    store: Any,
    ids: Sequence[str],
    names: Sequence[str] | None,
    kinds: Sequence[str],
    wanted: tuple[str, ...],
    place: str,
) -> list[str]:
    """Adds the nodes and returns their ids as texts."""
    columns = _columns(store, wanted, len(ids), edges=False)
    added = []
    for position, node_id in enumerate(ids):
        attributes = {name: values[position] for name, values in columns.items()}
        name = names[position] if names is not None else None
        where = f"{place}[{position}]"
        added.append(builder.add_node(node_id, name, kinds[position], attributes=attributes, where=where))
    return added


def _add_edges(
    builder: GraphBuilder,
    store: Any,
    index: Array,
    ids: tuple[Sequence[str], Sequence[str]],
    relations: str | Sequence[str],
    wanted: tuple[str, ...],
    place: str,
) -> None:
    count = index.shape[1]
    sources = [ids[0][position] for position in index[0].tolist()]
    targets = [ids[1][position] for position in index[1].tolist()]
    labels = [relations] * count if isinstance(relations, str) else relations
    columns = _columns(store, wanted, count, edges=True)
    if not columns:
        builder.add_triples(sources, labels, targets, lambda i: f"{place}[{i}]")
        return
    for position, (source, label, target) in enumerate(zip(sources, labels, targets, strict=True)):
        attributes = {name: values[position] for name, values in columns.items()}
        builder.add_edge(source, label, target, attributes, f"{place}[{position}]")


def _columns(store: Any, wanted: tuple[str, ...], count: int, edges: bool) -> dict[str, list[Any]]:
    """The tensors called `wanted` that have a row per node (or per edge: those called edge_...), as lists."""
    found = {}
    for name in wanted:
        value = _get(store, name)
        if value is not None and name.startswith("edge_") == edges:
            array = _array(value, name)
            if array.ndim == 0 or len(array) != count:
                raise GraphError(f"{name}: expected {count} rows, found the shape {array.shape}")
            found[name] = array.tolist()
    return found


def _edge_index(store: Any, place: str, limits: Limits) -> Array:
    """int64[2, E], checked to be a list of edges."""
    value = _get(store, "edge_index")
    if value is None:
        raise GraphError(f"{place}: is missing")
    index = _array(value, place)
    if index.ndim != 2 or len(index) != 2:
        raise GraphError(f"{place}: expected the shape (2, edges), found {index.shape}")
    if index.shape[1] > limits.edges:
        raise GraphError(f"{place}: more than {limits.edges:,} edges")
    if index.size and index.dtype.kind not in "iu":
        raise GraphError(f"{place}: expected integers, found {index.dtype}")
    return index.astype(np.int64)


def _check_range(index: Array, counts: tuple[int, int], place: str) -> None:
    for row, count in enumerate(counts):
        bad = np.flatnonzero((index[row] < 0) | (index[row] >= count))
        for column in bad[:1].tolist():
            raise GraphError(f"{place}[{row}, {column}]: {index[row, column]} is none of {count:,} nodes")


def _num_nodes(store: Any, place: str, edges: Array, limits: Limits) -> int:
    """What the store says, else the rows of its features, else what its edges mention."""
    if (features := _get(store, "x")) is not None:
        count = len(_array(features, f"{place}.x"))
    elif isinstance(given := _get(store, "num_nodes"), int | np.integer):
        count = int(given)
    else:
        count = int(edges.max(initial=-1)) + 1
    if not 0 <= count <= limits.nodes:
        raise GraphError(f"{place}: {count:,} nodes, the limit is {limits.nodes:,}")
    return count


def _labels(data: Any, field: str, names: Sequence[str] | None, count: int, option: str) -> list[str] | None:
    """The texts of a column of codes: its numbers, or what `names` calls them."""
    value = _get(data, field)
    if value is None:
        if names is not None:
            raise GraphError(f"{option}: the data has no {field}")
        return None
    codes = _array(value, field)
    if codes.shape != (count,) or (count and codes.dtype.kind not in "iu"):
        raise GraphError(
            f"{field}: expected {count} integers, found {codes.dtype} of the shape {codes.shape}"
        )
    if names is None:
        return list(map(str, codes.tolist()))
    _check_codes(codes, len(names), field, option)
    return [names[code] for code in codes.tolist()]


def _check_codes(codes: Array, count: int, field: str, option: str) -> None:
    for position in np.flatnonzero((codes < 0) | (codes >= count))[:1].tolist():
        raise GraphError(f"{field}[{position}]: {codes[position]} has no name among {count} {option}")


def _texts(names: Names, count: int, option: str) -> Sequence[str] | None:
    if names is None:
        return None
    if isinstance(names, str | Mapping) or len(names) != count:
        raise GraphError(f"{option}: expected a list of {count} strings, found {shown(names)}")
    return names


def _edge_type(edge_type: Any) -> tuple[str, str, str]:
    if not isinstance(edge_type, tuple) or len(edge_type) != 3:
        raise GraphError(f"edge_types: expected (source, relation, target), found {shown(edge_type)}")
    return edge_type


def _get(store: Any, name: str) -> Any:
    return getattr(store, name, None)


def _array(value: Any, place: str) -> Array:
    """A tensor or an array as an array; raises GraphError for others."""
    for method in ("detach", "cpu"):
        if callable(getattr(value, method, None)):
            value = getattr(value, method)()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise GraphError(f"{place}: is no array: {str(error)[:200]}") from error
    if array.dtype == object:
        raise GraphError(f"{place}: is no array of numbers")
    return array
