"""Molecules: SMILES (http://opensmiles.org) through rdkit, atoms as nodes and bonds as edges.

Atoms are numbered as in the canonical SMILES, so that every way to write a molecule gives the same graph.
"""

from __future__ import annotations

import importlib
from typing import Any

from vglm.errors import GraphError
from vglm.graph.build import GraphBuilder
from vglm.graph.graph import Graph
from vglm.graph.limits import Limits, shown

_MAX_CHARACTERS = 5_000
_MAX_ATOMS = 1_000  # finding rings and resonance forms takes long for more


def graph_from_smiles(smiles: str, limits: Limits, id: str) -> Graph:
    """See `Graph.from_smiles`."""
    if not isinstance(smiles, str):
        raise GraphError(f"smiles: expected a string, found {shown(smiles)}")
    if len(smiles) > _MAX_CHARACTERS:
        raise GraphError(f"smiles: {len(smiles):,} characters, the limit is {_MAX_CHARACTERS:,}")
    if not smiles.isascii():
        raise GraphError(f"smiles: {shown(smiles)} is not SMILES, which is ASCII")
    molecule = _molecule(smiles)
    builder = GraphBuilder(limits)
    symbols: dict[str, int] = {}
    ids = []
    for atom in molecule.GetAtoms():
        symbol = atom.GetSymbol()
        symbols[symbol] = symbols.get(symbol, 0) + 1
        name = f"{symbol}{symbols[symbol]}"
        ids.append(builder.add_node(f"{id}:{name}" if id else name, name, symbol, attributes=_atom(atom)))
    for bond in molecule.GetBonds():
        ends = sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))
        relation = f"{bond.GetBondType().name.lower()} bond"
        builder.add_edge(ids[ends[0]], relation, ids[ends[1]], _bond(bond))
    return builder.build()


def _molecule(smiles: str) -> Any:
    """rdkit's molecule, its atoms in canonical order; raises GraphError saying what is wrong with the text."""
    try:
        chem: Any = importlib.import_module("rdkit.Chem")
        base: Any = importlib.import_module("rdkit.rdBase")
    except ImportError as error:
        raise GraphError("SMILES need rdkit: pip install 'vglm[chem]'") from error
    with base.BlockLogs():
        parsed = chem.MolFromSmiles(smiles, sanitize=False)
        if parsed is None or not parsed.GetNumAtoms():
            raise GraphError(f"smiles: {shown(smiles)} is not SMILES")
        if parsed.GetNumAtoms() > _MAX_ATOMS:
            raise GraphError(f"smiles: {parsed.GetNumAtoms():,} atoms, the limit is {_MAX_ATOMS:,}")
        try:
            chem.SanitizeMol(parsed)
        except ValueError as error:  # "Explicit valence for atom # 1 C, 5, is greater than permitted"
            raise GraphError(f"smiles: {shown(smiles)}: {str(error)[:200]}") from error
        canonical = chem.MolFromSmiles(chem.MolToSmiles(chem.RemoveHs(parsed)))
    if canonical is None:
        raise GraphError(f"smiles: {shown(smiles)} has no canonical form")
    return canonical


def _atom(atom: Any) -> dict[str, Any]:
    """What is not as usual about an atom, and its hydrogens."""
    said = {
        "charge": atom.GetFormalCharge(),
        "hydrogens": atom.GetTotalNumHs(),
        "isotope": atom.GetIsotope(),
        "radical electrons": atom.GetNumRadicalElectrons(),
        "aromatic": atom.GetIsAromatic(),
        "in ring": atom.IsInRing(),
        "chirality": _chirality(atom),
    }
    return {name: value for name, value in said.items() if value}


def _chirality(atom: Any) -> str:
    """R or S, where rdkit can tell."""
    return atom.GetProp("_CIPCode") if atom.HasProp("_CIPCode") else ""


def _bond(bond: Any) -> dict[str, Any]:
    stereo = bond.GetStereo().name.removeprefix("STEREO")
    return {"stereo": stereo} if stereo in ("E", "Z", "CIS", "TRANS") else {}
