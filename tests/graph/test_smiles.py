"""Molecules from SMILES."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem

from vglm.errors import GraphError
from vglm.graph.graph import Graph

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
CAFFEINE = "Cn1c(=O)c2c(ncn2C)n(C)c1=O"
PIECES = [*"CcNnO()=#12./\\[]+-*$:@", "Cl", "[nH]", "[C@H]", "%10"]
MOLECULES = [ASPIRIN, CAFFEINE, "C[C@H](N)C(=O)O", "F/C=C/F", "[Na+].[Cl-]", "C1CC2CCC1CC2", "[13CH4]", "*CC"]


def test_ethanol() -> None:
    graph = Graph.from_smiles("OCC", id="ethanol")
    assert [(n.id, n.name, n.type, n.attributes) for n in graph.nodes()] == [
        ("ethanol:C1", "C1", "C", {"hydrogens": 3}),
        ("ethanol:C2", "C2", "C", {"hydrogens": 2}),
        ("ethanol:O1", "O1", "O", {"hydrogens": 1}),
    ]
    assert graph.to_triples() == [
        ("ethanol:C1", "single bond", "ethanol:C2"),
        ("ethanol:C2", "single bond", "ethanol:O1"),
    ]


@pytest.mark.parametrize("smiles", MOLECULES)
def test_atoms_and_bonds_are_those_of_the_molecule(smiles: str) -> None:
    molecule = Chem.MolFromSmiles(smiles)
    graph = Graph.from_smiles(smiles)
    assert graph.num_nodes == molecule.GetNumAtoms()
    assert graph.num_edges == molecule.GetNumBonds()
    assert sorted(node.type for node in graph.nodes()) == sorted(a.GetSymbol() for a in molecule.GetAtoms())
    assert sum(node.attributes.get("charge", 0) for node in graph.nodes()) == Chem.GetFormalCharge(molecule)
    kinds = sorted(f"{bond.GetBondType().name.lower()} bond" for bond in molecule.GetBonds())
    assert sorted(edge.relation for edge in graph.edges()) == kinds


@pytest.mark.parametrize("smiles", MOLECULES)
def test_every_way_to_write_a_molecule_gives_the_same_graph(smiles: str) -> None:
    molecule = Chem.MolFromSmiles(smiles)
    shuffle = random.Random(0)
    graph = Graph.from_smiles(smiles)
    for _ in range(20):
        order = list(range(molecule.GetNumAtoms()))
        shuffle.shuffle(order)
        written = Chem.MolToSmiles(Chem.RenumberAtoms(molecule, order), canonical=False)
        assert Graph.from_smiles(written) == graph, written


def test_stereochemistry_is_kept() -> None:
    left, right = Graph.from_smiles("C[C@H](N)C(=O)O"), Graph.from_smiles("C[C@@H](N)C(=O)O")
    assert left != right
    assert {node.attributes.get("chirality") for node in left.nodes()} == {None, "S"}
    assert Graph.from_smiles("F/C=C/F") != Graph.from_smiles("F/C=C\\F")
    assert {e.attributes.get("stereo") for e in Graph.from_smiles("F/C=C/F").edges()} == {None, "E"}


@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        ("", "'' is not SMILES"),
        ("CC(", r"'CC\(' is not SMILES"),
        ("Aspirin", "'Aspirin' is not SMILES"),
        ("C\x00C", "is not SMILES"),
        ("C(C)(C)(C)(C)C", r"Explicit valence for atom # 0 C"),
        ("c1cccc1", "kekulize"),
        ("C" * 2_000, "2,000 atoms, the limit is 1,000"),
        ("C" * 10_000, "10,000 characters, the limit is 5,000"),
        ("C(" * 2_400, "is not SMILES"),
        ("[" * 5_000, "is not SMILES"),
        ("\ud800", "is not"),
        (5, "expected a string, found 5"),
    ],
)
def test_errors_say_what_is_wrong(smiles: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(GraphError, match=message):
        Graph.from_smiles(smiles)
    assert capfd.readouterr().err == ""  # rdkit's own messages


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
def test_any_text_is_a_molecule_or_refused(smiles: str) -> None:
    try:
        graph = Graph.from_smiles(smiles)
    except GraphError as error:
        found = str(error)
    else:
        found = ""
        assert graph.num_nodes > 0
    assert not found or found.startswith("smiles: ")


def test_large_molecules_are_read() -> None:
    assert Graph.from_smiles("C" * 1_000).num_nodes == 1_000
    assert Graph.from_smiles("N" + "CC(=O)N" * 200 + "C").num_nodes == 802
    assert Graph.from_smiles("C(" * 450 + "C" + ")C" * 450).num_nodes == 901
