"""The main job on real input: a published patient's findings in, ranked and explained diseases out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vglm.errors import VGLMError
from vglm.graph.evidence import Candidate
from vglm.graph.hpo import HPO, load_hpo
from vglm.graph.patient import Patient, known_cases, parse_patient, read_patient
from vglm.graph.question import Mentions, mentions, question
from vglm.graph.text import GraphText
from vglm.model.pull import home, pull_hpo

if TYPE_CHECKING:
    from vglm import LLM

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_CASE = "marfan"
EXPLAINED = 3  # candidates that the model explains
MAX_COMMAS = 8  # in the name of a phenotype
GRAPH_BUDGET = 1_000  # tokens of graph text in one question


@dataclass(frozen=True, slots=True)
class Ranking:
    """The candidates, and milliseconds for the first ranking and for the same one again."""

    candidates: list[Candidate]
    first_ms: float
    again_ms: float


@dataclass(slots=True)
class Explanation:
    """What the model said about one candidate and what it took: seconds, tokens, KV blocks."""

    candidate: Candidate
    graph: GraphText
    text: str = ""
    ttft: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    prompt_tokens_computed: int = 0
    kv_blocks: int = 0
    kv_tokens: int = 0
    checked: Mentions = field(default_factory=lambda: Mentions((), ()))

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token."""
        return (self.tokens - 1) / (self.seconds - self.ttft) if self.tokens > 1 else 0.0


OTHER_CASES = ", ".join(case for case in known_cases() if case != DEFAULT_CASE)
EPILOG = "\n\n".join(
    (
        "Examples:",
        f"vglm demo   (the published case {DEFAULT_CASE}; others: {OTHER_CASES})",
        "vglm demo HP:0001519 HP:0001083",
        "vglm demo --patient loeys-dietz --top 5",
        'vglm demo --findings "Ectopia lentis, Arachnodactyly" --excluded "Short stature"',
        "vglm demo --patient my-patient.json --no-explain --json",
    )
)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for; None stands for the default of the option."""

    patient: str | None
    findings: list[str] | None
    excluded: list[str] | None
    model: str
    top: int
    max_tokens: int
    hpo: Path | None
    explain: bool
    as_json: bool


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
    ] = DEFAULT_MODEL,
    top: Annotated[int, typer.Option(min=1, max=1000, help="Candidates to list.")] = 10,
    max_tokens: Annotated[
        int, typer.Option(min=1, max=4096, help="Tokens of each explanation, at most.")
    ] = 96,
    hpo: Annotated[
        Path | None, typer.Option(help="Directory with hp.obo and phenotype.hpoa; else they are fetched.")
    ] = None,
    explain: Annotated[bool, typer.Option(help="Let the model explain the best candidates.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Rank the rare diseases that fit a patient's findings, with the evidence, and let a model explain them.

    Fetches the Human Phenotype Ontology and the model when they are not there yet, loads the ontology and its
    annotations as a graph, and prints what it measured. Not a medical device.
    """
    findings = [*(findings or []), *(terms or [])] or None
    options = Options(patient, findings, excluded, model, top, max_tokens, hpo, explain, as_json)
    try:
        run(options)
    except VGLMError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("\ninterrupted", err=True)
        raise typer.Exit(130) from None


def run(options: Options) -> None:
    """The demo from beginning to end; raises VGLMError for options, files and models that do not work."""
    from vglm.demo_view import Quiet, View

    view = Quiet() if options.as_json else View()
    hpo = load_hpo(options.hpo or pull_hpo(progress=not options.as_json), home() / "graphs")
    patient = choose_patient(hpo, options)
    view.patient(hpo, patient)
    ranking = rank(hpo, patient, options.top)
    view.ranking(ranking.candidates, patient)
    best = ranking.candidates[:EXPLAINED]
    view.evidence(best)
    explanations: list[Explanation] = []
    load_seconds = 0.0
    if options.explain:
        with view.working(f"loading {options.model}"):
            llm, load_seconds = load_model(options.model)
        explanations = [explain_candidate(llm, hpo, patient, c, options.max_tokens, view) for c in best]
    if options.as_json:
        print(
            json.dumps(
                report(hpo, patient, ranking, explanations, load_seconds), indent=2, ensure_ascii=False
            )
        )
    else:
        view.measured(hpo, ranking, explanations, options.model, load_seconds)


def choose_patient(hpo: HPO, options: Options) -> Patient:
    """The patient that the options describe; raises VGLMError when they contradict each other."""
    if options.findings is None:
        if options.excluded is not None:
            raise VGLMError("--excluded goes with --findings; a case lists its own")
        return read_patient(options.patient or DEFAULT_CASE, hpo)
    if options.patient is not None:
        raise VGLMError("--patient and --findings exclude each other; give one of them")
    given = {"findings": options.findings, "excluded": options.excluded or []}
    return parse_patient({field: _split(values, hpo) for field, values in given.items()}, hpo, "options")


def _split(values: list[str], hpo: HPO) -> list[str]:
    """The terms in comma-separated lists; names that have commas of their own stay whole."""
    terms: list[str] = []
    for value in values:
        parts = [part.strip() for part in value.split(",") if part.strip()]
        while parts:
            lengths = range(min(len(parts), MAX_COMMAS + 1), 1, -1)
            length = next((n for n in lengths if hpo.knows(", ".join(parts[:n]))), 1)
            terms.append(", ".join(parts[:length]))
            del parts[:length]
    return terms


def rank(hpo: HPO, patient: Patient, top: int) -> Ranking:
    """Ranks all diseases, twice: the first ranking also pages the cached graph in."""
    times: list[float] = []
    candidates: list[Candidate] = []
    for _ in range(2):
        started = time.perf_counter()
        candidates = hpo.ranker.rank(patient.findings, patient.excluded, top)
        times.append(1000 * (time.perf_counter() - started))
    return Ranking(candidates, *times)


def load_model(model: str) -> tuple[LLM, float]:
    """The model, and the seconds from nothing to ready, the import of the engine included."""
    started = time.perf_counter()
    from vglm import LLM

    llm = LLM(model=model)
    return llm, time.perf_counter() - started


def explain_candidate(
    llm: LLM, hpo: HPO, patient: Patient, candidate: Candidate, max_tokens: int, view: Any
) -> Explanation:
    """Asks the model about one candidate, shows the answer as it comes, and checks what it names."""

    def count_tokens(text: str) -> int:
        return len(llm.tokenizer.encode(text, add_special=False))

    messages, text = question(hpo.graph, candidate, patient.findings, count_tokens, GRAPH_BUDGET)
    result = Explanation(candidate, text)
    view.asking(candidate, text)
    for piece in stream_answer(llm, messages, max_tokens, result):
        result.text += piece
        view.piece(piece)
    result.checked = mentions(hpo, candidate, result.text)
    view.answered(result)
    return result


def stream_answer(
    llm: LLM, messages: list[dict[str, str]], max_tokens: int, result: Explanation
) -> Iterator[str]:
    """Yields the answer's text as it is generated and writes its measurements into `result`.

    The clock starts before the chat template and the tokenizer run.
    """
    from vglm import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=0, frequency_penalty=0.2)
    computed = llm.engine.metrics.prompt_tokens
    started = time.perf_counter()
    for chunk in llm.stream(messages, params):
        now = time.perf_counter() - started
        if chunk.token_ids:
            result.ttft = result.ttft or now
            result.seconds = now
            result.tokens += len(chunk.token_ids)
            pool = llm.stats().pool
            result.kv_blocks, result.kv_tokens = pool.used, pool.tokens_valid
        if chunk.text:
            yield chunk.text
    result.prompt_tokens_computed = llm.engine.metrics.prompt_tokens - computed


def report(
    hpo: HPO, patient: Patient, ranking: Ranking, explanations: list[Explanation], model_seconds: float
) -> dict[str, Any]:
    """Everything that the demo found and measured, as JSON values."""
    name: Callable[[str], str] = hpo.graph.name_of
    return {
        "release": hpo.version,
        "patient": {
            **asdict(patient),
            "findings": [{"id": i, "name": name(i)} for i in patient.findings],
            "excluded": [{"id": i, "name": name(i)} for i in patient.excluded],
        },
        "candidates": [asdict(candidate) for candidate in ranking.candidates],
        "explanations": [
            {
                "id": e.candidate.id,
                "text": e.text,
                "graph_text": e.graph.text,
                "linked": e.checked.linked,
                "unlinked": e.checked.unlinked,
                "ttft_ms": 1000 * e.ttft,
                "tokens_per_second": e.tokens_per_second,
                **{
                    key: getattr(e, key)
                    for key in ("tokens", "prompt_tokens_computed", "kv_blocks", "kv_tokens")
                },
            }
            for e in explanations
        ],
        "measured": {
            "graph_load_seconds": hpo.load_seconds,
            "graph_from_cache": hpo.from_cache,
            "model_load_seconds": model_seconds,
            "ranking_first_ms": ranking.first_ms,
            "ranking_again_ms": ranking.again_ms,
        },
    }


def main() -> None:
    """Runs the demo with the process's arguments."""
    app = typer.Typer(add_completion=False)
    app.command(epilog=EPILOG)(demo)
    app()


if __name__ == "__main__":
    main()
