"""A patient as the ranking sees one: findings that are present, and findings that were looked for and
are absent."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vglm.errors import GraphError
from vglm.graph.hpo import HPO
from vglm.graph.limits import checked_text, shown

CASES = Path(__file__).parent.parent / "patients"  # published cases that come with vGLM
MAX_BYTES = 1_000_000
_AGE = re.compile(r"P(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)D)?")


@dataclass(frozen=True, slots=True)
class Patient:
    """Ids of phenotypes of one ontology release; `diagnosis` is (id, name) where it was published."""

    findings: tuple[str, ...]
    excluded: tuple[str, ...] = ()
    id: str = "patient"
    description: str = ""  # "girl, 8 years"
    publication: str = ""
    url: str = ""
    credit: str = ""
    note: str = ""
    diagnosis: tuple[str, str] | None = None


def known_cases() -> list[str]:
    """Names of the cases that come with vGLM."""
    return sorted(path.stem for path in CASES.glob("*.json"))


def read_patient(name_or_path: str | Path, hpo: HPO) -> Patient:
    """Reads a patient's file, or a case that comes with vGLM by its name; raises GraphError naming the
    field."""
    path = CASES / f"{name_or_path}.json" if str(name_or_path) in known_cases() else Path(name_or_path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise GraphError(f"{path}: larger than {MAX_BYTES:,} bytes; is it a patient's file?")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GraphError(
            f"{path}: cannot be read: {error.strerror or error}; cases of vGLM: {', '.join(known_cases())}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise GraphError(f"{path}: is not JSON: {error}") from error
    return parse_patient(data, hpo, path.name)


def parse_patient(data: object, hpo: HPO, where: str = "patient") -> Patient:
    """A patient from JSON: `findings` and `excluded` list ids, names, or objects with an `id`; all else
    is optional."""
    if not isinstance(data, Mapping):
        raise GraphError(f"{where}: expected an object, found {shown(data)}")
    source = _object(data, "source", where)
    diagnosis = _object(data, "diagnosis", where)
    findings = _terms(data, "findings", hpo, where)
    if not findings:
        raise GraphError(f"{where}.findings: lists no finding")
    return Patient(
        findings=findings,
        excluded=_terms(data, "excluded", hpo, where),
        id=_text(data, "id", where) or "patient",
        description=_describe(_text(data, "sex", where), _text(data, "age", where)),
        publication=_text(source, "publication", f"{where}.source"),
        url=_text(source, "url", f"{where}.source"),
        credit=", ".join(
            filter(None, (_text(source, key, f"{where}.source") for key in ("dataset", "license")))
        ),
        note=_text(data, "note", where),
        diagnosis=(
            (_text(diagnosis, "id", f"{where}.diagnosis"), _text(diagnosis, "label", f"{where}.diagnosis"))
            if diagnosis
            else None
        ),
    )


def _terms(data: Mapping[str, Any], field: str, hpo: HPO, where: str) -> tuple[str, ...]:
    values = data.get(field, [])
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise GraphError(f"{where}.{field}: expected a list, found {shown(values)}")
    terms: list[str] = []
    for position, value in enumerate(values):
        place = f"{where}.{field}[{position}]"
        given = value.get("id") if isinstance(value, Mapping) else value
        try:
            terms.append(hpo.resolve(checked_text(given, "id", 1_000, empty=False)))
        except GraphError as error:
            raise GraphError(f"{place}: {error}") from error
    return tuple(dict.fromkeys(terms))


def _object(data: Mapping[str, Any], field: str, where: str) -> Mapping[str, Any]:
    value = data.get(field) or {}
    if not isinstance(value, Mapping):
        raise GraphError(f"{where}.{field}: expected an object, found {shown(value)}")
    return value


def _text(data: Mapping[str, Any], field: str, where: str) -> str:
    value = data.get(field)
    return "" if value is None else checked_text(value, f"{where}.{field}", 10_000)


def _describe(sex: str, age: str) -> str:
    """ "male" and "P8Y6M" (ISO 8601) as "male, 8 years 6 months"."""
    match = _AGE.fullmatch(age)
    parts = zip(match.groups() if match else (), ("year", "month", "day"), strict=False)
    words = " ".join(f"{n} {unit}{'' if n == '1' else 's'}" for n, unit in parts if n)
    return ", ".join(filter(None, (sex if sex in ("female", "male") else "", words)))
