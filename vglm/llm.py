"""The offline API: load a model, ask it things."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vglm.assemble import CompletionChunk
from vglm.decode.outputs import RequestOutput
from vglm.decode.sampling_params import SamplingParams
from vglm.errors import RequestError
from vglm.llm_graph import GraphTasks
from vglm.llm_requests import one_each
from vglm.llm_scores import Scores
from vglm.prompts import EncodedPrompt, Prompt, check_messages, encode_prompts, is_single

if TYPE_CHECKING:
    from vglm.tasks.asking import Asked, Constraint, GraphSource

Message = Mapping[str, Any]


class LLM(GraphTasks, Scores):
    """A model and its engine.

    Args:
        model: a known name (`vglm pull --list`), a GGUF file, or a Hugging Face directory with safetensors.
        options: see `vglm.options.EngineOptions`: dtype, kv_cache_dtype, max_model_len, max_num_seqs,
            max_num_batched_tokens, kv_cache_memory, block_size, threads, enable_prefix_caching, seed, span_cache_dir.

    Raises ModelError for a model that cannot be loaded, ConfigError for options that do not fit, and
    TypeError for unknown ones.

    Example:
        >>> llm = LLM(model="smollm2-135m-instruct")
        >>> llm.generate(["The capital of France is"], SamplingParams(max_tokens=8, temperature=0))[0].text
    """

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        graph: GraphSource | Sequence[GraphSource] | None = None,
        constraint: Constraint | Sequence[Constraint] | None = None,
        graph_mode: str = "auto",
    ) -> list[RequestOutput]:
        """Complete one prompt or many; outputs come in the order of the prompts.

        A prompt is text, token ids, or a mapping (see `vglm.prompts.Prompt`). One SamplingParams serves all prompts, or
        give one for each.

        `graph`: the Graph that a prompt is about, or a GraphQuery for the part of it that the prompt needs; one for all,
        or one each. `constraint`: what an answer must be: "answer", "walk", "mentions", or see `vglm.Grounding`. `graph_mode`
        is the engine's own unless it is "spans" or "sequential". Outputs then have a `graph` (`vglm.GraphOutput`). A model that
        was trained to be asked about graphs, as open-autoglm-v1, gets a text with a graph as a question in its chat template.

        Raises RequestError or GraphError, before anything runs, when a prompt or parameter cannot be served.
        """
        if graph is None:
            _refuse_without_graph(constraint)
            return self._complete(encode_prompts(prompts, self.tokenizer), sampling_params, use_tqdm)
        many: Sequence[Any] = [prompts] if is_single(prompts) else prompts  # type: ignore[assignment]
        asked = self._ask(self.asking.complete, many, graph, constraint, graph_mode)
        return self._complete([one.prompt for one in asked], sampling_params, use_tqdm, asked)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        graph: GraphSource | Sequence[GraphSource] | None = None,
        constraint: Constraint | Sequence[Constraint] | None = None,
        graph_mode: str = "auto",
        **template_variables: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation or many: lists of {"role": ..., "content": ...}, through the model's chat template.

        With a `graph`, it stands before the last message of the user; see `generate`.
        """
        if not isinstance(messages, Sequence):
            raise RequestError(f"messages must be a list of mappings; got {type(messages).__name__}")
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        for conversation in conversations:
            check_messages(conversation)
        if graph is None:
            _refuse_without_graph(constraint)
            chat = self.chat_format
            prompts = [chat.encode(c, **template_variables) for c in conversations]  # type: ignore[arg-type]
            return self.generate(prompts, sampling_params, use_tqdm)
        ask = partial(self.asking.chat, **template_variables)
        asked = self._ask(ask, conversations, graph, constraint, graph_mode)
        return self._complete([one.prompt for one in asked], sampling_params, use_tqdm, asked)

    def stream(
        self,
        prompt: Prompt | Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        graph: GraphSource | None = None,
        constraint: Constraint | None = None,
        graph_mode: str = "auto",
        **template_variables: Any,
    ) -> Iterator[CompletionChunk]:
        """Complete one prompt, or one conversation, and yield its text as it becomes certain.

        The last chunk of each completion has a finish_reason, and a `graph` if the request has one: see `generate`.
        Leaving the loop ends the request.
        """
        params = one_each(SamplingParams() if sampling_params is None else sampling_params, 1)[0]
        talk = isinstance(prompt, Sequence) and bool(prompt) and isinstance(prompt[0], Mapping)
        if not talk and not is_single(prompt):
            raise RequestError("stream takes one prompt; use generate for many")
        if talk:
            check_messages(prompt)
        asked: Asked | None = None
        if graph is not None:
            ask = partial(self.asking.chat, **template_variables) if talk else self.asking.complete
            asked = self._ask(ask, [prompt], graph, constraint, graph_mode)[0]
            encoded: EncodedPrompt = asked.prompt
        else:
            _refuse_without_graph(constraint)
            if talk:
                prompt = self.chat_format.encode(prompt, **template_variables)  # type: ignore[arg-type]
            encoded = encode_prompts(prompt, self.tokenizer)[0]
        return self.stream_encoded(encoded, params, asked)

    def _ask(
        self, ask: Callable[..., Asked], prompts: Sequence[Any], graph: Any, constraint: Any, mode: str
    ) -> list[Asked]:
        from vglm.tasks.asking import one_each

        graphs, constraints = (
            one_each(name, given, len(prompts))
            for name, given in (("graph", graph), ("constraint", constraint))
        )
        each = zip(prompts, graphs, constraints, strict=True)
        return [ask(prompt, source, wanted, mode) for prompt, source, wanted in each]


def _refuse_without_graph(constraint: object) -> None:
    if constraint is not None:
        raise RequestError("a constraint is over a graph; give one (graph=...)", "constraint")
