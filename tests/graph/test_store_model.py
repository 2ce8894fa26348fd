"""Any sequence of operations, through two openers of one file, against dictionaries that keep every version."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.graph.store_model import Model, Parts, documents, patches
from vglm.errors import ConflictError, GraphError
from vglm.graph.graph import Graph
from vglm.graph.store import GraphStore

NAMES = st.sampled_from(["g", "h"])
OPENERS = st.integers(0, 1)


class StoreMachine(RuleBasedStateMachine):
    """`models[name]` maps each version that is kept to its content."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "graphs.db"
        # one that copies in full all the time and keeps one graph, and one with the defaults
        self.stores = [GraphStore(self.path, compact_after=3_000, cache_bytes=0), GraphStore(self.path)]
        self.models: dict[str, dict[int, Model]] = {}
        self.labels: dict[str, dict[str, int]] = {}

    def teardown(self) -> None:
        for store in self.stores:
            store.check_integrity()
            store.close()
        self.folder.cleanup()

    def newest(self, name: str) -> int:
        return max(self.models[name])

    @rule(opener=OPENERS, name=NAMES, document=documents())
    def create(self, opener: int, name: str, document: dict[str, Any]) -> None:
        graph = Graph.from_dict(document)
        if name in self.models:
            with pytest.raises(ConflictError):
                self.stores[opener].create(name, graph)
            return
        assert self.stores[opener].create(name, graph) == 1
        self.models[name] = {1: Model(document)}
        self.labels[name] = {}

    @rule(opener=OPENERS, name=NAMES, parts=patches, expected=st.none() | st.integers(-1, 0))
    def patch(self, opener: int, name: str, parts: Parts, expected: int | None) -> None:
        store = self.stores[opener]
        if name not in self.models:
            with pytest.raises(GraphError):
                store.patch(name, **parts)
            return
        now = self.newest(name)
        if expected == -1:
            ids = [node["id"] for node in parts["upsert_nodes"]]
            with pytest.raises(ConflictError if len(set(ids)) == len(ids) else GraphError):
                store.patch(name, **parts, expected_version=now - 1)
            return
        after = self.models[name][now].patched(parts)
        if after is None:
            with pytest.raises(GraphError):
                store.patch(name, **parts, expected_version=None if expected is None else now)
            return
        version = store.patch(name, **parts, expected_version=None if expected is None else now)
        if version == now:
            assert after.graph() == self.models[name][now].graph()
        else:
            assert version == now + 1
            self.models[name][version] = after

    @precondition(lambda self: self.models)
    @rule(opener=OPENERS, data=st.data(), document=documents())
    def replace(self, opener: int, data: st.DataObject, document: dict[str, Any]) -> None:
        name = data.draw(st.sampled_from(sorted(self.models)))
        version = self.stores[opener].replace(name, Graph.from_dict(document))
        assert version == self.newest(name) + 1
        self.models[name][version] = Model(document)

    @precondition(lambda self: self.models)
    @rule(opener=OPENERS, data=st.data())
    def read(self, opener: int, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.models)))
        version = data.draw(st.sampled_from([None, *sorted(self.models[name]), *sorted(self.labels[name])]))
        stored = self.stores[opener].read(name, version)
        number = self.labels[name][version] if isinstance(version, str) else version or self.newest(name)
        assert stored.version == number
        assert stored.graph == self.models[name][number].graph()

    @precondition(lambda self: self.models)
    @rule(opener=OPENERS, data=st.data(), label=st.sampled_from(["first", "l2"]))
    def snapshot(self, opener: int, data: st.DataObject, label: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.models)))
        version = data.draw(st.sampled_from([None, *sorted(self.models[name])]))
        number = version or self.newest(name)
        if self.labels[name].get(label, number) != number:
            with pytest.raises(ConflictError):
                self.stores[opener].snapshot(name, label, version)
            self.stores[opener].delete_snapshot(name, label)
            del self.labels[name][label]
            return
        assert self.stores[opener].snapshot(name, label, version) == number
        self.labels[name][label] = number

    @precondition(lambda self: self.models)
    @rule(opener=OPENERS, data=st.data(), keep=st.integers(1, 4))
    def prune(self, opener: int, data: st.DataObject, keep: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.models)))
        first = min([self.newest(name) - keep + 1, *self.labels[name].values()])
        dropped = [version for version in self.models[name] if version < first]
        assert self.stores[opener].prune(name, keep) == len(dropped)
        for version in dropped:
            del self.models[name][version]

    @precondition(lambda self: self.models)
    @rule(opener=OPENERS, data=st.data())
    def delete(self, opener: int, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.models)))
        self.stores[opener].delete(name)
        del self.models[name], self.labels[name]

    @rule()
    def reopen(self) -> None:
        for store in self.stores:
            store.close()
        self.stores = [GraphStore(self.path, compact_after=3_000, cache_bytes=0), GraphStore(self.path)]

    @invariant()
    def lists_agree(self) -> None:
        for store in self.stores:
            assert store.names() == sorted(self.models)
            for name, versions in self.models.items():
                assert store.version(name) == max(versions)
                assert [v.number for v in store.versions(name)] == sorted(versions, reverse=True)
                assert {s.label: s.version for s in store.snapshots(name)} == self.labels[name]


StoreMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestStore = StoreMachine.TestCase
