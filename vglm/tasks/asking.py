"""Questions about graphs: which part of a graph a question reads, in what form, and what may answer it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vglm.decode.graph_outputs import GraphOutput
from vglm.decode.grounded import Grounded, GroundedDecoder, Grounding, compile_grounding
from vglm.engine.request import Request
from vglm.engine.request import Sequence as EngineSequence
from vglm.errors import RequestError
from vglm.graph.graph import Graph
from vglm.graph.linking import linker
from vglm.graph.named import named_facts
from vglm.graph.retrieval import Retrieved, retrieve
from vglm.graph.structure import facts
from vglm.model.tokenizer import Tokenizer
from vglm.prompts import encode_prompts
from vglm.tasks.graph_output import graph_output
from vglm.tasks.graph_prompt import GraphMode, GraphPrompt, GraphPrompts, parse_graph_mode

if TYPE_CHECKING:
    from vglm.model.chat import ChatFormat
    from vglm.model.config import ModelConfig

Constraint = str | Mapping[str, Any] | Grounding
SHAPE_WORDS = re.compile(
    r"\b(paths?|connect(ed|s|ion|ivity)?|reach(es|able|ed)?|(a|any|have|has) cycles?|acyclic|shortest|distance|steps"
    r"|how many (\w+ )?(nodes|edges|parts|components))\b",
    re.IGNORECASE,
)
FACTS_UP_TO = 20_000  # edges: of a larger graph no facts are said
LINK_UP_TO = 100_000  # nodes: in a larger graph that a request brings, evidence is not looked for unasked


@dataclass(frozen=True, slots=True)
class GraphQuery:
    """A part of a graph, chosen for each question: see `vglm.graph.retrieval.retrieve`."""

    graph: Graph
    entities: tuple[str, ...] | None = None
    hops: int = 2
    budget: int = 1024
    method: str = "auto"


GraphSource = Graph | GraphQuery


@dataclass(slots=True)
class Asked:
    """A question ready for the engine, and what its answer means.

    `decoder` is the constraint of its sequences, None for free text.
    """

    prompt: GraphPrompt
    graph: Graph
    question: str
    retrieved: Retrieved | None
    decoder: GroundedDecoder | None

    def output(self, request: Request, sequence: EngineSequence, text: str) -> GraphOutput:
        """What one sequence of the finished request says."""
        grounded = None
        if self.decoder is not None and sequence.finish_reason != "abort":
            grounded = self._read(sequence, text)
        entities = self._entities(grounded is not None)
        return graph_output(self.graph, self.prompt, request, grounded, self.retrieved, entities)

    def _read(self, sequence: EngineSequence, text: str) -> Grounded:
        assert self.decoder is not None
        try:
            return self.decoder.read(text)
        except RequestError:  # cut within a character, or by a stop string: what was sampled is of the form
            stop = sequence.request.stop_ids
            return self.decoder.read([token for token in sequence.output_token_ids if token not in stop])

    def _entities(self, wanted: bool) -> tuple[str, ...]:
        """Ids of the entities that the question names."""
        if self.retrieved is not None:
            mentions = self.retrieved.entities
        elif wanted and self.graph.num_nodes <= LINK_UP_TO:
            mentions = tuple(linker(self.graph).link(self.question))
        else:
            mentions = ()
        return tuple(dict.fromkeys(entity.id for mention in mentions for entity in mention.entities[:1]))


class Asking:
    """Asks one model; safe to share between threads."""

    def __init__(
        self, tokenizer: Tokenizer, config: ModelConfig, prompts: GraphPrompts, chat: ChatFormat | None
    ) -> None:
        self.prompts = prompts
        self._tokenizer = tokenizer
        self._config = config
        self._chat = chat

    @cached_property
    def _heading(self) -> list[int]:
        return self._tokenizer.encode(self.prompts.card.heading)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self._tokenizer

    @property
    def has_chat(self) -> bool:
        """Whether the model comes with a chat template."""
        return self._chat is not None

    @property
    def answer_lead(self) -> str:
        """What stands between the prompt of a `question` and the words of its answer."""
        return " " if self._chat is None else ""

    @property
    def end_id(self) -> int:
        """The token that ends the answer to a `question`."""
        if self._chat is not None and self._config.eos_token_ids:
            return self._config.eos_token_ids[0]
        return self._tokenizer.encode("\n", add_special=False)[-1]

    def question(
        self,
        text: str,
        source: GraphSource,
        constraint: Constraint | None = None,
        mode: str = "auto",
        *,
        named: bool = True,
    ) -> Asked:
        """One question, through the chat template where the model has one; control tokens in it are text.

        Without `named`, nothing is repeated of the entities that it names: the question itself says what matters.
        """
        if self._chat is not None:
            return self.chat([{"role": "user", "content": text}], source, constraint, mode, named=named)
        after = self._tokenizer.encode(f"{text}\nAnswer:", add_special=False, allow_special_tokens=False)
        return self._ask(source, text, self._heading, after, constraint, mode, named)

    def complete(
        self, prompt: Any, source: GraphSource, constraint: Constraint | None = None, mode: str = "auto"
    ) -> Asked:
        """A prompt (text or token ids) that follows its graph. Raises RequestError or GraphError.

        A model that was trained to be asked about graphs was so through its chat template, and gets a text through that.
        """
        if isinstance(prompt, str) and self.prompts.card.facts and self._chat is not None:
            return self.question(prompt, source, constraint, mode)
        encoded = encode_prompts(prompt, self._tokenizer, add_special=False)
        if len(encoded) != 1 or encoded[0].embeds is not None:
            raise RequestError("a prompt with a graph is one text or a list of token ids", "prompt")
        text = encoded[0].text
        after = self._tokenizer.encode(text, add_special=False) if text is not None else encoded[0].token_ids
        question = text if text is not None else self._tokenizer.decode(after)
        return self._ask(source, question, self._heading, after, constraint, mode)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        source: GraphSource,
        constraint: Constraint | None = None,
        mode: str = "auto",
        *,
        named: bool = True,
        **options: Any,
    ) -> Asked:
        """A conversation whose last message of the user follows the graph; `named` as in `question`, `options` are
        `ChatFormat.encode`'s.
        """
        if self._chat is None:
            raise RequestError(
                "the model has no chat template; give a prompt of your own instead", "messages"
            )
        before, after = self._chat.encode_around(messages, **options)
        question = next(str(m["content"]) for m in reversed(messages) if m.get("role") == "user")
        words = self._tokenizer.encode(self.prompts.card.heading, add_special=False)
        return self._ask(source, question, [*before, *words], after, constraint, mode, named)

    def _ask(
        self,
        source: GraphSource,
        question: str,
        before: list[int],
        after: list[int],
        constraint: Constraint | None,
        mode: str,
        named: bool = True,
    ) -> Asked:
        wanted: GraphMode = parse_graph_mode(mode)
        retrieved = None
        graph = source if isinstance(source, Graph) else None
        if isinstance(source, GraphQuery):
            retrieved = self.retrieve(source, question)
            graph = retrieved.graph
        if graph is None:
            raise _no_graph("a Graph or a GraphQuery", source)
        if constraint is not None and retrieved is not None and not graph.num_nodes:
            raise RequestError(f"there is nothing to answer from: {retrieved.left_out.why}", "graph")
        decoder = None if constraint is None else self.compile(constraint, graph)
        after = [*self._facts(graph, question, named), *after]
        shared = None if retrieved is None else retrieved.shared_names
        prompt = self.prompts.encode(graph, before, after, wanted, question, shared)
        return Asked(prompt, graph, question, retrieved, decoder)

    def _facts(self, graph: Graph, question: str, named: bool) -> list[int]:
        """A line about the graph's shape for a question that needs it, otherwise about what it names, for a model that was
        trained to read them.
        """
        about_shape = SHAPE_WORDS.search(question) is not None
        if not self.prompts.card.facts or graph.num_edges > FACTS_UP_TO or not (about_shape or named):
            return []
        mentions = (mention.best.id for mention in linker(graph).link(question, fuzzy=False))
        nodes = [graph.index_of(node) for node in dict.fromkeys(mentions)]
        line = facts(graph, nodes) if about_shape else named_facts(graph, nodes, question)
        return (
            self._tokenizer.encode(f"{line}\n", add_special=False, allow_special_tokens=False) if line else []
        )

    def retrieve(self, query: GraphQuery, question: str) -> Retrieved:
        """The part of a stored graph that a question is about. Raises GraphError."""
        return retrieve(
            query.graph,
            question,
            entities=query.entities,
            hops=query.hops,
            budget=query.budget,
            count_tokens=self.prompts.count_tokens,
            method=query.method,  # type: ignore[arg-type]  # checked there
        )

    def compile(self, constraint: Constraint, graph: Graph) -> GroundedDecoder:
        """A constraint for answers over a graph. Raises RequestError (param `constraint`)."""
        return compile_grounding(
            constraint, graph, self._tokenizer, self._config.vocab_size, self._config.eos_token_ids
        )


def check_graph(graph: object) -> None:
    """Raises RequestError for what is no Graph."""
    if not isinstance(graph, Graph):
        raise _no_graph("a Graph", graph)


def _no_graph(wanted: str, given: object) -> RequestError:
    how = ""
    if isinstance(given, str):
        how = "; Graph.load(path) reads a file"
    elif isinstance(given, dict):
        how = "; Graph.from_dict makes one of node-link JSON"
    return RequestError(f"graph must be {wanted}; got {type(given).__name__}{how}", "graph")


def one_each(name: str, given: Any, count: int) -> list[Any]:
    """One value for all prompts, or a list of one for each. Raises RequestError that names the parameter."""
    if not isinstance(given, list | tuple):
        return [given] * count
    if len(given) != count:
        raise RequestError(f"{count} prompts but {len(given)} of {name}; give one for all, or one each", name)
    return list(given)
