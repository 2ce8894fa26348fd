"""How the demo shows things on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from vglm.graph.evidence import Candidate, Evidence
from vglm.graph.hpo import HPO
from vglm.graph.patient import Patient
from vglm.graph.store import Stored
from vglm.graph.text import one_line

if TYPE_CHECKING:
    from vglm.demo import Ranking
    from vglm.demo_ask import Answer


class Quiet:
    """Shows nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: nullcontext()


class View:
    """Prints each part of the demo when it is known."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)

    def working(self, what: str) -> AbstractContextManager[Any]:
        """A spinner while something takes time."""
        return self.console.status(escape(what))

    def patient(self, hpo: HPO, patient: Patient) -> None:
        """Who the patient is and what was found."""
        graph = hpo.graph
        how = "from the cache" if hpo.from_cache else "parsed"
        self.console.print(
            f"[bold]{escape(hpo.version)}[/]: {graph.num_nodes:,} nodes, {graph.num_edges:,} edges, "
            f"{len(hpo.ranker.index.diseases):,} diseases with phenotypes, {how} in {hpo.load_seconds:.2f} s"
        )
        body = Text()
        if patient.publication:
            body.append(f"Published in {patient.publication} {patient.url}\n", "cyan")
        if patient.note:
            body.append(f"{patient.note}\n", "dim")
        content = index_of = hpo.ranker.index.information_content
        for finding in sorted(patient.findings, key=lambda f: -float(index_of[graph.index_of(f)])):
            value = float(content[graph.index_of(finding)])
            body.append(f"\n  {finding}  ", "dim")
            body.append(one_line(graph.name_of(finding)), "bold")
            body.append(f"  {value:.1f} nats", "dim")
        if patient.excluded:
            names = ", ".join(one_line(graph.name_of(finding)) for finding in patient.excluded)
            body.append(f"\n\n  absent: {names}", "dim")
        if patient.credit:
            body.append(f"\n\n  case from {patient.credit}", "dim")
        title = f"Patient{': ' + patient.description if patient.description else ''}"
        self.console.print(Panel(body, title=title, title_align="left", box=box.ROUNDED))

    def untrained(self, model: str) -> None:
        """That the model has no ranking of its own."""
        self.console.print(
            f"{escape(one_line(model))} has no disease ranking of its own: ranked by likelihood ratios."
        )

    def ranking(self, candidates: list[Candidate], patient: Patient) -> None:
        """The ranked diseases; the published diagnosis is marked where it is among them."""
        table = Table(title="Ranked candidates", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for header, right in (
            ("", True),
            ("Disease", False),
            ("Id", False),
            ("Probability", True),
            ("Explained", True),
        ):
            table.add_column(header, justify="right" if right else "left")
        table.add_column("Weightiest evidence")
        true_id = patient.diagnosis[0] if patient.diagnosis else ""
        for candidate in candidates:
            explained = sum(item.explained for item in candidate.evidence)
            best = ", ".join(one_line(item.finding_name) for item in candidate.evidence[:3] if item.explained)
            table.add_row(
                str(candidate.place),
                Text(one_line(candidate.name), "bold green" if candidate.id == true_id else ""),
                candidate.id,
                "" if candidate.probability is None else f"{candidate.probability:.1%}",
                f"{explained}/{len(candidate.evidence)}",
                Text(best, "dim"),
            )
        self.console.print(table)
        if patient.diagnosis:
            found = next((c.place for c in candidates if c.id == true_id), None)
            place = f"place {found}" if found else f"not among the first {len(candidates)}"
            self.console.print(
                f"Published diagnosis: [green]{escape(patient.diagnosis[1])}[/] ({true_id}): {place}\n"
            )

    def evidence(self, candidates: Iterable[Candidate]) -> None:
        """The evidence edges of the best candidates."""
        for candidate in candidates:
            table = Table(
                title=f"{candidate.place}. {escape(one_line(candidate.name))}: evidence",
                title_justify="left",
                box=box.SIMPLE_HEAD,
                pad_edge=False,
            )
            for header in ("Finding", "has phenotype", "Shared ancestor", "Frequency", "References"):
                table.add_column(header)
            table.add_column("Content", justify="right")
            table.add_column("Weight", justify="right")
            for item in candidate.evidence:
                table.add_row(*_evidence_row(item), style="" if item.explained else "dim")
            for item in candidate.against:
                table.add_row(*_evidence_row(item), style="red")
            self.console.print(table)

    def stored(self, stored: Stored) -> None:
        """Which graph the model reads."""
        if stored.version:
            self.console.print(
                f"[dim]The model reads the stored graph '{stored.name}', version {stored.version}.[/]\n"
            )

    def asking(self, answer: Answer) -> None:
        """The question, and the beginning of its answer."""
        self.console.print(f"[bold]{escape(one_line(answer.title))}[/]")
        self.console.print(Text(one_line(answer.lead)), end="", soft_wrap=True)

    def piece(self, text: str) -> None:
        """A piece of the answer, at once."""
        self.console.print(Text(text), end="", soft_wrap=True)

    def answered(self, answer: Answer) -> None:
        """The edges that the answer rests on, and what of the graph had been computed before."""
        self.console.print()
        for edge in answer.edges:
            said = edge.attributes
            references = ", ".join(said.get("references", ())[:3])
            frequency = str(said.get("frequency_label") or said.get("frequency") or "")
            notes = "; ".join(part for part in (frequency, references) if part)
            target = f"{answer.graph.name_of(edge.target)} [{edge.target}]"
            line = f"  {edge.source} {edge.relation} {target}" + (f" ({notes})" if notes else "")
            self.console.print(Text(one_line(line), "green"))
        share = answer.cached_tokens / answer.graph_tokens if answer.graph_tokens else 0.0
        self.console.print(
            f"  [dim]first token after {1000 * answer.ttft:.0f} ms; {answer.cached_tokens} of {answer.graph_tokens} "
            f"tokens of its graph came from the cache ({share:.0%})[/]\n"
        )

    def measured(
        self, hpo: HPO, ranking: Ranking, answers: list[Answer], model: str, load_seconds: float
    ) -> None:
        """What it took."""
        table = Table(box=box.SIMPLE_HEAD, title="Measured", title_justify="left", pad_edge=False)
        table.add_column("What")
        table.add_column("", justify="right")
        table.add_row(
            f"ontology ({'from the cache' if hpo.from_cache else 'parsed'})", f"{hpo.load_seconds:.3f} s"
        )
        diseases = len(hpo.ranker.index.diseases)
        table.add_row(
            f"ranking {diseases:,} diseases", f"{ranking.first_ms:.1f} ms, again {ranking.again_ms:.1f} ms"
        )
        if answers:
            table.add_row(f"model {escape(model)} ready", f"{load_seconds:.3f} s")
        self.console.print(table)
        if answers:
            self.console.print(_answers_table(answers))


def _answers_table(answers: list[Answer]) -> Table:
    """One row per answer; forced tokens are appended without being sampled."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Question")
    headers = ("First token", "All of it", "Tokens", "Graph tokens", "From the cache", "Computed")
    for header in headers:
        table.add_column(header, justify="right")
    for answer in answers:
        table.add_row(
            escape(one_line(answer.title)),
            f"{1000 * answer.ttft:.1f} ms",
            f"{1000 * answer.seconds:.1f} ms",
            str(answer.tokens),
            str(answer.graph_tokens),
            str(answer.cached_tokens),
            str(answer.computed_tokens),
        )
    return table


def _evidence_row(item: Evidence) -> tuple[str, ...]:
    shared = "the same" if item.ancestor == item.finding == item.matched else item.ancestor_name
    references = ", ".join(item.references[:2]) + (
        f" +{len(item.references) - 2}" if len(item.references) > 2 else ""
    )
    cells = (item.finding_name, item.matched_name or "nothing", shared, item.frequency, references)
    return (
        *(escape(one_line(cell)) for cell in cells),
        f"{item.information_content:.1f}",
        f"{item.log_ratio:+.1f}",
    )
