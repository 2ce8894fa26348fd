"""Places for the nodes of a drawing: force-directed, the same for the same graph, and steady while a graph is edited.

After Fruchterman and Reingold (1991): nodes repel each other, edges pull, and steps get shorter. Nodes that have a place
already keep it, so that a drawing does not jump when something is added to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

STEPS = 300
PARTING_STEPS = 150
NAME_HEIGHT = 32.0  # pixels of a node with its name
MARGIN = np.array((90.0, 34.0))  # pixels at the sides, for the names of nodes there
MOST_MARGIN = 0.22  # of the frame's width and height
_EVEN = 0.5
_GRAVITY = 0.6  # keeps parts that no edge joins from drifting apart
_GOLDEN = 2.399963  # radians between neighbours on a spiral

Places = dict[str, tuple[float, float]]
Points = npt.NDArray[np.float64]


def place(
    nodes: Sequence[str],
    edges: Sequence[tuple[str, str]],
    frame: tuple[float, float],
    known: Mapping[str, tuple[float, float]] | None = None,
    widths: Sequence[float] | None = None,
) -> Places:
    """A place in the frame (width, height) for every node; those of `known` stay as they are.

    `widths`: pixels of the nodes' names, which then are kept from lying on each other where there is room.
    """
    known = known or {}
    if not nodes:
        return {}
    number = {node: i for i, node in enumerate(nodes)}
    ends = np.array([(number[a], number[b]) for a, b in edges if a != b], np.int64).reshape(-1, 2)
    fixed = np.array([node in known for node in nodes])
    points = _start(nodes, ends, frame, known)
    if not fixed.all():
        points = _settled(points, ends, fixed, frame)
        if not fixed.any():
            points = _spread(points, frame)
        if widths is not None:
            points = _parted(points, np.array(widths, float), fixed, frame)
    inside = np.clip(points, _margin(frame), np.array(frame) - _margin(frame))
    points = np.where(fixed[:, None], points, inside)
    return {node: (round(x, 1), round(y, 1)) for node, (x, y) in zip(nodes, points.tolist(), strict=True)}


def _start(
    nodes: Sequence[str],
    ends: npt.NDArray[np.int64],
    frame: tuple[float, float],
    known: Mapping[str, tuple[float, float]],
) -> Points:
    """New nodes begin on a spiral, or beside the neighbours that have a place."""
    middle = np.array(frame) / 2
    turn = np.arange(len(nodes)) * _GOLDEN
    spiral = np.sqrt((np.arange(len(nodes)) + 0.5) / len(nodes))[:, None] * np.stack(
        [np.cos(turn), np.sin(turn)], 1
    )
    points: Points = middle + spiral * middle * 0.8
    near: dict[int, list[tuple[float, float]]] = {}
    for a, b in ends.tolist():
        for one, other in ((a, b), (b, a)):
            if nodes[other] in known:
                near.setdefault(one, []).append(known[nodes[other]])
    for i, node in enumerate(nodes):
        if node in known:
            points[i] = known[node]
        elif i in near:
            points[i] = np.mean(near[i], 0) + spiral[i] * middle * 0.15
    return points


def _settled(
    points: Points, ends: npt.NDArray[np.int64], fixed: npt.NDArray[np.bool_], frame: tuple[float, float]
) -> Points:
    """Let the forces work; distances are in units of the ideal distance."""
    scale = np.array(frame) / np.sqrt(len(points))
    at = points / scale
    middle = np.array(frame) / scale / 2
    degrees = np.maximum(np.bincount(ends.ravel(), minlength=len(points)), 1)
    ease = (
        1 / np.sqrt(np.minimum(degrees[ends[:, 0]], degrees[ends[:, 1]]))[:, None]
    )  # what hubs share is not crushed
    for step in range(STEPS):
        apart = at[:, None] - at[None]
        square = np.maximum((apart**2).sum(-1), 1e-2)
        force = (apart / square[..., None]).sum(1)
        pull = at[ends[:, 0]] - at[ends[:, 1]]
        pull *= np.sqrt((pull**2).sum(-1, keepdims=True)) * ease
        np.subtract.at(force, ends[:, 0], pull)
        np.add.at(force, ends[:, 1], pull)
        force -= _GRAVITY * (at - middle)
        size = np.sqrt((force**2).sum(-1, keepdims=True))
        longest = 0.8 * (1 - step / STEPS) + 0.01
        at += np.where(fixed[:, None], 0.0, force / np.maximum(size, 1e-9) * np.minimum(size, longest))
    settled: Points = at * scale
    return settled


def _margin(frame: tuple[float, float]) -> Points:
    least: Points = np.minimum(MARGIN, MOST_MARGIN * np.array(frame))
    return least


def _spread(points: Points, frame: tuple[float, float]) -> Points:
    """The drawing fills its frame, and crowds in it are loosened: places are half way to those of evenly spread ranks."""
    size, margin = np.array(frame), _margin(frame)
    out = np.tile(size / 2, (len(points), 1))
    for axis in range(2):
        column = points[:, axis]
        low, high = column.min(), column.max()
        if high - low < 1e-6:
            continue
        even = np.argsort(np.argsort(column, kind="stable"), kind="stable") / (len(points) - 1)
        share = (1 - _EVEN) * (column - low) / (high - low) + _EVEN * even
        out[:, axis] = margin[axis] + (size[axis] - 2 * margin[axis]) * share
    return out


def _parted(
    points: Points, widths: Points, fixed: npt.NDArray[np.bool_], frame: tuple[float, float]
) -> Points:
    """Move nodes whose names lie on each other apart: up and down, or sideways where that is shorter."""
    low, high = _margin(frame), np.array(frame) - _margin(frame)
    free = ~fixed
    order = np.sign(np.subtract.outer(np.arange(len(points)), np.arange(len(points))))
    for _ in range(PARTING_STEPS):
        apart = points[:, None] - points[None]
        over_x = (widths[:, None] + widths[None]) / 2 - np.abs(apart[..., 0])
        over_y = NAME_HEIGHT - np.abs(apart[..., 1])
        clash = (over_x > 0) & (over_y > 0) & (order != 0)
        if not clash.any():
            break
        sideways = clash & (over_x < over_y)
        way = np.where(apart == 0, order[..., None], np.sign(apart))
        push_x = np.where(sideways, over_x * way[..., 0], 0.0).sum(1)
        push_y = np.where(clash & ~sideways, over_y * way[..., 1], 0.0).sum(1)
        points = points + 0.3 * free[:, None] * np.stack([push_x, push_y], 1)
        points = np.where(fixed[:, None], points, np.clip(points, low, high))
    return points
