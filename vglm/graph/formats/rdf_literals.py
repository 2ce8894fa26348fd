"""Literals of RDF by subject: names, texts and attributes of nodes, and readable names for what IRIs stand for."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vglm.graph.formats import rdf_terms as terms
from vglm.graph.graph import Ints

Value = tuple[Any, str]  # a JSON value, and its language ("" for none)
_SPOKEN = frozenset((*terms.NAMES, *terms.ALIASES))  # predicates that are never attributes


class Literals:
    """Rows (subject, predicate, value) in the order of the file; IRIs are numbers."""

    def __init__(self) -> None:
        self.subjects = array("i")
        self.predicates = array("i")
        self.values: list[Value] = []

    def __len__(self) -> int:
        return len(self.values)

    def add(self, subject: int, predicate: int, literal: Any) -> None:
        """Adds what pyoxigraph's `literal` holds."""
        self.subjects.append(subject)
        self.predicates.append(predicate)
        self.values.append((_value(literal), literal.language or ""))

    def extend(
        self, subjects: Ints, predicates: Ints, texts: Sequence[str], languages: Sequence[str | None]
    ) -> None:
        """Adds many plain texts."""
        self.subjects.frombytes(subjects.tobytes())
        self.predicates.frombytes(predicates.tobytes())
        self.values.extend((text, language or "") for text, language in zip(texts, languages, strict=True))


class Descriptions:
    """All literals by subject; `iris[code]` is what a number stands for."""

    def __init__(self, literals: Literals, iris: Sequence[str], language: str) -> None:
        self._iris = iris
        self._language = language
        self._values = literals.values
        self._predicates = np.frombuffer(literals.predicates, np.int32)
        subjects = np.frombuffer(literals.subjects, np.int32)
        self._counts = np.bincount(subjects, minlength=len(iris))
        self._order = np.argsort(subjects, kind="stable")
        self._ends = np.cumsum(self._counts)
        used = [code for code in np.unique(self._predicates).tolist() if iris[code] not in _SPOKEN]
        self._attribute_names = {iris[code]: name for code, name in self.names(used).items()}

    def subjects(self) -> npt.NDArray[np.bool_]:
        """True for what has a literal, bool[len(iris)]."""
        return self._counts > 0

    def of(self, subject: int) -> dict[str, list[Value]]:
        """The literals of a subject by the IRI of their predicate."""
        found: dict[str, list[Value]] = {}
        if count := int(self._counts[subject]):
            end = int(self._ends[subject])
            for row in self._order[end - count : end].tolist():
                found.setdefault(self._iris[self._predicates[row]], []).append(self._values[row])
        return found

    def names(self, codes: Iterable[int]) -> dict[int, str]:
        """A name for each IRI: its label, else its last part; the IRI itself where two would get the same name."""
        iris = {code: self._iris[code] for code in codes}
        names = {code: self._name(self.of(code)) or terms.local_name(iri) for code, iri in iris.items()}
        counts = Counter(names.values())
        return {
            code: name if counts[name] == 1 or iris[code].startswith(terms.OWN) else iris[code]
            for code, name in names.items()
        }

    def node(self, subject: int, kinds: list[str]) -> tuple[str, str, str, list[str], dict[str, Any]]:
        """Name, type, text, aliases and attributes of a node; of several `kinds` the first is its type."""
        if not kinds and not self._counts[subject]:
            return terms.local_name(self._iris[subject]), "", "", [], {}
        values = self.of(subject)
        name = self._name(values)
        labels = [value for predicate in terms.NAMES for value, _ in values.get(predicate, ())]
        aliases = [value for predicate in terms.ALIASES for value, _ in values.get(predicate, ())]
        aliases += [label for label in labels if label != name]
        text = ""
        for predicate in terms.TEXTS:
            if not text and predicate in values:
                text = self._best(values[predicate])
                values[predicate] = [value for value in values[predicate] if str(value[0]) != text]
        attributes = self._attributes(values)
        if len(kinds) > 1:
            attributes.setdefault("types", kinds)
        if name is None:
            name = terms.local_name(self._iris[subject])
        return name, kinds[0] if kinds else "", text, list(map(str, aliases)), attributes

    def attributes(self, subject: int) -> dict[str, Any]:
        """The literals of a statement."""
        return self._attributes(self.of(subject))

    def _attributes(self, literals: dict[str, list[Value]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for predicate, values in literals.items():
            if predicate in _SPOKEN or not values:
                continue
            distinct = {json.dumps(value, sort_keys=True): value for value, _ in values}
            ordered = [distinct[key] for key in sorted(distinct)]
            found[self._attribute_names[predicate]] = ordered[0] if len(ordered) == 1 else ordered
        return found

    def _name(self, values: dict[str, list[Value]]) -> str | None:
        return next((self._best(values[name]) for name in terms.NAMES if name in values), None)

    def _best(self, values: list[Value]) -> str:
        """The text in the language wanted, else one without a language, else the first; of several the least."""
        wanted = self._language.casefold()

        def rank(value: Value) -> tuple[int, str, str]:
            own = value[1].casefold()
            matches = own == wanted or own.startswith(f"{wanted}-")
            return (0 if matches else 1 if not own else 2, own, str(value[0]))

        return str(min(values, key=rank)[0])


def _value(literal: Any) -> Any:
    """A literal as a JSON value; as its text where its datatype has no better one."""
    text: str = literal.value
    kind = literal.datatype.value
    if kind == terms.STRING or kind == terms.LANGUAGE_STRING:
        return text
    try:
        if kind in terms.INTEGERS:
            return int(text)
        if kind in terms.FLOATS:
            number = float(text)
            return number if abs(number) < float("inf") else text
        if kind == terms.BOOLEAN:
            return {"true": True, "1": True, "false": False, "0": False}.get(text, text)
        if kind in terms.JSON_KINDS:
            return json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text
