"""A model that is loaded: its engine, and what goes with the model's files, made when it is first needed."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vglm.engine.metrics import EngineStats
from vglm.errors import ModelError, RequestError
from vglm.model.tokenizer import Tokenizer
from vglm.options import EngineOptions, build_engine
from vglm.parts import Parts
from vglm.progress import progress_bar

if TYPE_CHECKING:  # imported when it is needed: a start without chat or progress bars is 40 ms faster
    from vglm.decode.grammar import GrammarCompiler
    from vglm.decode.matcher import Grammar
    from vglm.decode.structured import StructuredOutputs
    from vglm.model.chat import ChatFormat
    from vglm.tasks.asking import Asking
    from vglm.tasks.disease_ranking import DiseaseRanking


class LoadedModel:
    """What `LLM` is built on."""

    def __init__(self, model: str | Path, **options: Any) -> None:
        from vglm.model.pull import resolve_model

        if not isinstance(model, (str, Path)):
            raise ModelError(
                f"model is {model!r}; give a known name, a GGUF file or a Hugging Face directory"
            )
        if unknown := options.keys() - EngineOptions.__slots__:
            raise TypeError(  # as Python does for any unknown keyword, so that callers can probe
                f"unknown option {', '.join(sorted(unknown))}; there are {', '.join(EngineOptions.__slots__)}"
            )
        chosen = EngineOptions(**options)
        path = resolve_model(model)
        self.options = chosen.for_model(path)
        with progress_bar(100, "packing weights", unit="%", delay=0.5) as advance:
            self.engine, packed = build_engine(path, self.options, lambda done: advance(int(done * 100)))
        self.model = str(model)
        self.path = path
        self.parts = Parts(path)
        self.config = packed.config
        self._packed = packed
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._abandoned: deque[str] = deque()  # requests that nobody waits for any more
        self._ids = itertools.count()
        self._tokenizer: Tokenizer | None = None
        self._chat_format: ChatFormat | None = None
        self._grammars: GrammarCompiler | None = None
        self._asking: Asking | None = None
        self._disease_ranking: DiseaseRanking | None = None

    def __repr__(self) -> str:
        return f"LLM(model={self.model!r}, dtype={self.options.weight_dtype!r}, kv_cache_dtype={self.options.kv_dtype!r})"

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_json(self._packed.tokenizer_json)
        return self._tokenizer

    @property
    def has_chat_format(self) -> bool:
        """Whether the model comes with a chat template."""
        return self._packed.chat_template is not None

    @property
    def chat_format(self) -> ChatFormat:
        """How the model wants conversations. Raises RequestError when it has no chat template."""
        from vglm.model.chat import ChatFormat

        if self._chat_format is None:
            if self._packed.chat_template is None:
                raise RequestError(
                    f"the model {self.model!r} has no chat template; give it a prompt of your own instead"
                )
            eos_id = self.config.eos_token_ids[0] if self.config.eos_token_ids else None
            self._chat_format = ChatFormat(self._packed.chat_template, self.tokenizer, eos_id)
        return self._chat_format

    def compile_structured(self, structured: StructuredOutputs) -> Grammar:
        """Structured outputs as the `constraint` of a request to the engine; may be called in any thread.

        Takes a millisecond as a rule, a third of a second more the first time, seconds for a hostile schema. What was
        compiled lately is kept. Raises RequestError that says why it cannot be compiled.
        """
        from vglm.decode.grammar import GrammarCompiler

        with self._loading:
            if self._grammars is None:
                self._grammars = GrammarCompiler(
                    self.tokenizer, self.config.vocab_size, self.config.eos_token_ids
                )
        return self._grammars.compile(structured)

    @property
    def asking(self) -> Asking:
        """Questions about graphs, for this model."""
        from vglm.tasks.asking import Asking
        from vglm.tasks.graph_prompt import GraphPrompts, parse_graph_mode

        with self._loading:
            if self._asking is None:
                mode = parse_graph_mode(self.options.graph_mode)
                room = self.engine.pool.num_blocks * self.options.block_size
                prompts = GraphPrompts(
                    self.tokenizer, self._packed.graph_card, self.options.block_size, mode, room
                )
                chat = self.chat_format if self.has_chat_format else None
                self._asking = Asking(self.tokenizer, self.config, prompts, chat)
        return self._asking

    def stats(self) -> EngineStats:
        """Queues, KV pool and cache, now."""
        return self.engine.stats()

    def compact(self) -> int:
        """Move the KV cache's live blocks together and give the rest back to the system; returns the bytes given back."""
        from vglm.engine.executor import block_bytes

        with self._lock:
            before = self.engine.stats().pool.committed
            self.engine.compact()
            released = before - self.engine.stats().pool.committed
        return released * block_bytes(self._packed, self.options.block_size, self.options.kv_dtype)
