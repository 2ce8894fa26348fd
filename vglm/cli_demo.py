"""`vglm demo`: a patient's findings in, ranked and explained diseases out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = "\n\n".join(
    (
        "Examples:",
        "vglm demo   (the published case marfan; others: loeys-dietz, retinitis-pigmentosa)",
        "vglm demo HP:0001519 HP:0001083",
        "vglm demo --patient loeys-dietz --top 5",
        'vglm demo --findings "Ectopia lentis, Arachnodactyly" --excluded "Short stature"',
        "vglm demo --patient my-patient.json --no-explain --json",
    )
)


def demo(
    terms: Annotated[
        list[str] | None, typer.Argument(metavar="[FINDING]...", help="Findings, as with --findings.")
    ] = None,
    patient: Annotated[
        str | None,
        typer.Option(help="A case that comes with vGLM, or a JSON file with `findings` and `excluded`."),
    ] = None,
    findings: Annotated[
        list[str] | None,
        typer.Option(help="Findings instead of a case: HPO ids or names, several separated by commas."),
    ] = None,
    excluded: Annotated[
        list[str] | None, typer.Option(help="With --findings: what was looked for and is absent.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="A known model, a GGUF file, or a directory with safetensors.")
    ] = "open-autoglm-v1",
    top: Annotated[int, typer.Option(min=1, max=1000, help="Candidates to list.")] = 10,
    hpo: Annotated[
        Path | None, typer.Option(help="Directory with hp.obo and phenotype.hpoa; else they are fetched.")
    ] = None,
    explain: Annotated[bool, typer.Option(help="Let the model explain the best candidates.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Rank the rare diseases that fit a patient's findings, with the evidence, and let a model explain them.

    Fetches the Human Phenotype Ontology and the model when they are not there yet, keeps the ontology and its
    annotations as a graph in the store, and asks the model why the best candidates are candidates: it reads the
    graph as spans and can only name what the graph links. Prints what it measured. Not a medical device.
    """
    from vglm.demo import Options, run

    given = [*(findings or []), *(terms or [])] or None
    run(Options(patient, given, excluded, model, top, hpo, explain, as_json))
