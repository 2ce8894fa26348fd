"""What an LLM does with graphs besides answering: links that are missing, labels, explanations."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vglm.decode.sampling_params import SamplingParams
from vglm.engine.request import RequestKind
from vglm.errors import GraphError, RequestError
from vglm.llm_requests import Requests

if TYPE_CHECKING:
    from vglm.encoder.graph_classifier import GraphClassifier
    from vglm.encoder.relational import RelationalEncoder
    from vglm.graph.graph import Graph
    from vglm.tasks.disease_ranking import DiseaseRanking
    from vglm.tasks.explanation import Explained
    from vglm.tasks.ranking import Ranked, RankingTask
    from vglm.tasks.suggestion import Suggested, SuggestionChunk, SuggestionTask, WhyTask

SCORERS = ("auto", "encoder", "language")
SUGGESTION = SamplingParams(max_tokens=128, temperature=0.0)
EXPLANATION = SamplingParams(max_tokens=128, temperature=0.0)


class GraphTasks(Requests):
    """Methods that `LLM` inherits."""

    @property
    def disease_ranking(self) -> DiseaseRanking:
        """What ranks diseases for `suggest`: the model's own ranking, if it comes with one. Raises ModelError."""
        from vglm.model.pull import home
        from vglm.tasks.disease_ranking import disease_ranking_of

        with self._loading:
            if self._disease_ranking is None:
                self._disease_ranking = disease_ranking_of(self.path, home() / "graphs")
        return self._disease_ranking

    def complete(
        self,
        graph: Graph,
        *,
        relation: str,
        head: str | None = None,
        tail: str | None = None,
        top: int = 10,
        filtered: bool = False,
        candidates: Collection[str] | None = None,
        types: Collection[str] = (),
        temperature: float = 1.0,
        hops: int = 2,
        budget: int = 1024,
        graph_mode: str = "auto",
        scorer: str = "auto",
    ) -> Ranked:
        """Rank what may stand at the open end of a triple, given its `relation` and the id of its `head` or `tail`.

        Candidates are by default all nodes of the types that stand there in the graph. By `scorer` "encoder" the graph encoder
        ranks them, by message passing over the whole graph, in milliseconds; by "language" each is scored exactly, by the
        log-probability of its name after a prompt with what is near the given node (`hops`, `budget`, `graph_mode`). "auto" is
        the encoder for a model that has one and a graph of at most 512 relations, its limit. `filtered` leaves out those whose
        edge the graph has. `score` is the softmax over the candidates at `temperature`; fit one to known answers with
        `vglm.tasks.calibration.fit_temperature`.

        Raises GraphError and RequestError that name the argument at fault.
        """
        from vglm.tasks.completion import completion_task, open_end
        from vglm.tasks.links import encoded_links

        encoder = self.link_encoder(graph, scorer)
        end = open_end(
            graph,
            relation=relation,
            head=head,
            tail=tail,
            filtered=filtered,
            candidates=candidates,
            types=types,
        )
        if encoder is not None:
            return encoded_links(encoder, graph, end, top, temperature)
        task = completion_task(
            self.asking,
            graph,
            end,
            top=top,
            temperature=temperature,
            hops=hops,
            budget=budget,
            graph_mode=graph_mode,
        )
        return self._rank(task)

    def link_encoder(self, graph: Graph, scorer: str = "auto") -> RelationalEncoder | None:
        """The graph encoder that `scorer` asks for, None for the language model.

        "auto" is the language model where the model has no encoder and for a graph of more relations than encoders take.
        With "encoder" the one raises RequestError, the other GraphError.
        """
        from vglm.encoder.relational_structure import MAX_RELATIONS
        from vglm.tasks.asking import check_graph

        check_graph(graph)
        if scorer not in SCORERS:
            raise RequestError(f"scorer is {scorer[:40]!r}; choose {', '.join(SCORERS)}", "scorer")
        relations = len(graph.columns.relation_names)
        if scorer == "encoder" and relations > MAX_RELATIONS:
            raise GraphError(
                f"the graph has {relations:,} relations; the encoder takes {MAX_RELATIONS}: use scorer='language', "
                "or a subgraph of the relations that matter"
            )
        readable = scorer != "language" and relations <= MAX_RELATIONS
        encoder = self.parts.encoder if readable else None
        if encoder is None and scorer == "encoder":
            raise RequestError(
                f"the model {self.model!r} has no graph encoder; use scorer='language'", "scorer"
            )
        return encoder

    def classify(
        self,
        graph: Graph,
        labels: Sequence[str] | None = None,
        *,
        classifier: str | Path | GraphClassifier | None = None,
        entity: str | None = None,
        question: str | None = None,
        temperature: float = 1.0,
        hops: int = 2,
        budget: int = 1024,
        graph_mode: str = "auto",
    ) -> Ranked:
        """Rank `labels` by how well they fit a graph, or the node with the id `entity` and what is near it.

        Scores are as in `complete`. With a `classifier`, one that `vglm train classifier` made (its file, or its name in the
        model's card), that ranks its classes in place of the language model, or those of them that are `labels`. Raises
        GraphError, RequestError and ModelError that name what is at fault.
        """
        from vglm.tasks.asking import check_graph
        from vglm.tasks.classification import classification_task

        check_graph(graph)
        if classifier is not None:
            from vglm.tasks.trained_classes import trained_classes

            found = self.parts.classifier(classifier) if isinstance(classifier, (str, Path)) else classifier
            return trained_classes(found, graph, labels, temperature, entity=entity, question=question)
        task = classification_task(
            self.asking,
            graph,
            labels,
            entity=entity,
            question=question,
            temperature=temperature,
            hops=hops,
            budget=budget,
            graph_mode=graph_mode,
        )
        return self._rank(task)

    def explain(
        self,
        graph: Graph,
        source: str,
        target: str,
        *,
        question: str | None = None,
        max_paths: int = 3,
        max_hops: int = 4,
        sampling_params: SamplingParams = EXPLANATION,
        graph_mode: str = "auto",
    ) -> Explained:
        """How two nodes, given by their ids, are joined: paths of edges, and an explanation in words.

        The model reads the paths and nothing else, and every name that it puts in [brackets] is an entity of theirs.
        Without a path there is no text, and `reason` says so. Raises GraphError and RequestError that name the argument.
        """
        from vglm.tasks.asking import check_graph
        from vglm.tasks.explanation import explanation_task

        check_graph(graph)
        task = explanation_task(
            self.asking,
            graph,
            source,
            target,
            question=question,
            max_paths=max_paths,
            max_hops=max_hops,
            graph_mode=graph_mode,
        )
        if task.asked is None:
            return task.explained("", None, None)
        (output,) = self._complete([task.asked.prompt], sampling_params, False, [task.asked])
        said = output.outputs[0]
        return task.explained(said.text, said.finish_reason, said.graph)

    def suggest(
        self,
        graph: Graph,
        findings: Sequence[str],
        excluded: Sequence[str] = (),
        *,
        top: int = 10,
        explain: int = 1,
        sampling_params: SamplingParams = SUGGESTION,
        graph_mode: str = "auto",
    ) -> Suggested:
        """Rank the diseases of a graph by a patient's findings, and explain why the first `explain` of them are candidates.

        Findings and `excluded` ones (looked for, and absent) are ids of phenotypes, or words for them. Every candidate has a
        probability and the evidence for each finding; every name that an explanation puts in [brackets] is the candidate or one
        of its phenotypes. The graph needs `has phenotype` edges, as `vglm.graph.hpo.load_hpo` gives them. Raises GraphError and
        RequestError that name the argument at fault. Not a medical device.
        """
        task = self._suggestion(graph, findings, excluded, top, explain, graph_mode, sampling_params)
        asked = [one.asked for one in task.tasks if one.asked is not None]
        outputs = iter(self._complete([one.prompt for one in asked], sampling_params, False, asked))
        said = []
        for one in task.tasks:
            written = next(outputs).outputs[0] if one.asked is not None else None
            if written is None:
                said.append(one.explained())
            else:
                said.append(one.explained(written.text, written.finish_reason, written.graph))
        return replace(task.suggested, explanations=tuple(said))

    def stream_suggest(
        self,
        graph: Graph,
        findings: Sequence[str],
        excluded: Sequence[str] = (),
        *,
        top: int = 10,
        explain: int = 1,
        sampling_params: SamplingParams = SUGGESTION,
        graph_mode: str = "auto",
    ) -> tuple[Suggested, Iterator[SuggestionChunk]]:
        """As `suggest`: the ranking, which is there at once, and then the explanations, one by one, while they are written."""
        task = self._suggestion(graph, findings, excluded, top, explain, graph_mode, sampling_params)
        return task.suggested, self._write(task.tasks, sampling_params)

    def _suggestion(
        self,
        graph: Graph,
        findings: Sequence[str],
        excluded: Sequence[str],
        top: int,
        explain: int,
        graph_mode: str,
        params: SamplingParams,
    ) -> SuggestionTask:
        from vglm.tasks.asking import check_graph
        from vglm.tasks.suggestion import EXPLANATION_TOKENS, suggestion_task

        check_graph(graph)
        return suggestion_task(
            self.asking,
            self.disease_ranking,
            graph,
            findings,
            excluded,
            top=top,
            explain=explain,
            graph_mode=graph_mode,
            max_tokens=params.max_tokens or EXPLANATION_TOKENS,
        )

    def _write(self, tasks: Sequence[WhyTask], params: SamplingParams) -> Iterator[SuggestionChunk]:
        from vglm.tasks.suggestion import SuggestionChunk

        for task in tasks:
            place = task.candidate.place
            if task.asked is None:
                yield SuggestionChunk(place, "", task.explained())
                continue
            text = ""
            if task.lead:
                yield SuggestionChunk(place, task.lead)
            for chunk in self.stream_encoded(task.asked.prompt, params, task.asked):
                text += chunk.text
                if chunk.text:
                    yield SuggestionChunk(place, chunk.text)
                if chunk.finish_reason is not None:
                    yield SuggestionChunk(place, "", task.explained(text, chunk.finish_reason, chunk.graph))

    def _rank(self, task: RankingTask) -> Ranked:
        params = SamplingParams(max_tokens=1)
        (request,) = self._run(
            lambda _: self._add(task.asked.prompt, params, kind=RequestKind.TREE, candidates=task.targets),
            1,
            use_tqdm=False,
        )
        return task.ranked(request)
