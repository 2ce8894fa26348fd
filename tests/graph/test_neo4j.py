"""Results of Neo4j's driver, with the driver's own classes, which need no server."""

from __future__ import annotations

from typing import Any

import pytest
from neo4j import EagerResult, Record
from neo4j.graph import Graph as Neo4jGraph
from neo4j.graph import Node, Path, Relationship
from neo4j.spatial import WGS84Point
from neo4j.time import Date, Duration

from vglm.errors import GraphError
from vglm.graph.graph import Graph
from vglm.graph.limits import Limits


class Database:
    """Makes nodes and relationships as a result holds them."""

    def __init__(self) -> None:
        self.graph = Neo4jGraph()

    def node(self, element_id: str, *labels: str, **properties: Any) -> Node:
        made = Node(self.graph, element_id, 0, labels, properties)
        self.graph._nodes[element_id] = made
        return made

    def link(self, element_id: str, start: Node, kind: str, end: Node, **properties: Any) -> Relationship:
        made = self.graph.relationship_type(kind)(self.graph, element_id, 0, properties)
        made._start_node, made._end_node = start, end
        self.graph._relationships[element_id] = made
        return made


@pytest.fixture
def films() -> tuple[Database, Node, Node, Relationship]:
    database = Database()
    keanu = database.node("4:x:0", "Person", "Actor", name="Keanu Reeves", born=1964, aliases=["KR"])
    matrix = database.node(
        "4:x:1", "Movie", title="The Matrix", description="A film.", released=Date(1999, 3, 31)
    )
    acted = database.link("5:x:0", keanu, "ACTED_IN", matrix, roles=["Neo"])
    return database, keanu, matrix, acted


def check(graph: Graph) -> None:
    keanu, matrix = graph.nodes()
    assert (keanu.id, keanu.name, keanu.type, keanu.aliases) == ("4:x:0", "Keanu Reeves", "Actor", ("KR",))
    assert keanu.attributes == {"born": 1964, "labels": ["Actor", "Person"]}
    assert (matrix.name, matrix.type, matrix.text) == ("The Matrix", "Movie", "A film.")
    assert matrix.attributes == {"released": "1999-03-31"}
    assert [(e.source, e.relation, e.target, e.attributes) for e in graph.edges()] == [
        ("4:x:0", "ACTED_IN", "4:x:1", {"roles": ["Neo"]})
    ]


def test_nodes_relationships_and_paths_wherever_they_stand(films: Any) -> None:
    database, keanu, matrix, acted = films
    path = Path(keanu, acted)
    check(Graph.from_neo4j([Record({"n": keanu, "r": acted, "m": matrix, "count": 3, "name": "x"})]))
    check(Graph.from_neo4j([Record({"p": path}), Record({"p": path})]))
    check(Graph.from_neo4j([Record({"all": [keanu, {"inner": [acted, None]}]})]))
    check(Graph.from_neo4j(EagerResult([Record({"r": acted})], None, ["r"])))  # type: ignore[arg-type]
    check(Graph.from_neo4j(database.graph))
    check(Graph.from_neo4j(path))
    check(Graph.from_neo4j(iter([acted])))
    check(Graph.from_neo4j(acted))


def test_whole_nodes_win_over_the_bare_ends_of_relationships(films: Any) -> None:
    _, keanu, matrix, _ = films
    bare = Database()
    acted = bare.link("5:x:0", bare.node("4:x:0"), "ACTED_IN", bare.node("4:x:1"), roles=["Neo"])
    check(Graph.from_neo4j([Record({"r": acted}), Record({"n": keanu}), Record({"n": matrix})]))
    check(Graph.from_neo4j([Record({"n": matrix}), Record({"n": keanu}), Record({"r": acted})]))
    alone = Graph.from_neo4j([Record({"r": acted})])
    assert alone.to_triples() == [("4:x:0", "ACTED_IN", "4:x:1")]
    assert alone.name_of("4:x:0") == "4:x:0"


def test_ids_and_names_from_properties(films: Any) -> None:
    database, *_ = films
    graph = Graph.from_neo4j(database.graph, names="born")
    assert graph.name_of("4:x:0") == "4:x:0"  # a number is no name
    one = Database()
    a, b = one.node("1", "Drug", uuid="u1", code="A"), one.node("2", "Drug", uuid=7, code="B")
    one.link("3", a, "LIKE", b)
    graph = Graph.from_neo4j(one.graph, id_property="uuid", names=["code"])
    assert graph.to_triples() == [("u1", "LIKE", "7")]
    assert graph.name_of("7") == "B"
    one.node("4", "Drug", uuid="u1")
    with pytest.raises(GraphError, match=r"node '4'.id: the id 'u1' is used twice"):
        Graph.from_neo4j(one.graph, id_property="uuid")
    with pytest.raises(GraphError, match="node '1': has no property 'key'"):
        Graph.from_neo4j(one.graph, id_property="key")


def test_values_of_neo4j_become_json() -> None:
    one = Database()
    one.node(
        "1", place=WGS84Point((1.5, 2.5)), lasts=Duration(days=2), raw=b"\x00\xff", many=[Date(2020, 1, 2)]
    )
    assert next(Graph.from_neo4j(one.graph).nodes()).attributes == {
        "place": [1.5, 2.5],
        "lasts": "P2D",
        "raw": "AP8=",
        "many": ["2020-01-02"],
    }
    one.node("1", nothing=float("nan"))
    with pytest.raises(GraphError, match=r"node '1'.attributes: cannot be written as JSON"):
        Graph.from_neo4j(one.graph)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (5, "expected records, found 5"),
        ("MATCH (n)", "expected records, found 'MATCH"),
        ([{"n": {"name": "x"}}], r"no record holds a node.*not their data\(\)"),
        ([Record({"count": 1})], r"return them whole \(RETURN n, r, m\)"),
    ],
)
def test_results_without_a_graph(result: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Graph.from_neo4j(result)


def test_empty_results_and_bounds() -> None:
    assert Graph.from_neo4j([]).num_nodes == 0
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(GraphError, match=r"records\[0\]: nested more than 32 levels deep"):
        Graph.from_neo4j([Record({"x": deep})])
    one = Database()
    for number in range(5):
        one.node(str(number))
    with pytest.raises(GraphError, match="more than 3 nodes"):
        Graph.from_neo4j(one.graph, limits=Limits(nodes=3))
    lonely = one.graph.relationship_type("R")(one.graph, "9", 0, {})
    with pytest.raises(GraphError, match="a relationship without its two nodes"):
        Graph.from_neo4j([lonely])
