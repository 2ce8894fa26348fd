"""Grounded decoding: what a generated text names exists in the graph, what it cites is an edge of the graph.

    decoder = compile_grounding(Grounding(kind="walk", max_hops=2), graph, llm.tokenizer)
    decoder.start()      the engine's constraint of one sequence
    decoder.read(text)   the entities and edges that a generated text means

`grounding.py` says what may be asked for; `forms.py` and `schema.py` write it as a program over bytes, which
native/text_machine.cpp runs; `names.py` and `vocabulary.py` hold what is shared: a graph's sorted names, a vocabulary's tokens.
"""

from vglm.decode.grounded.decoder import GroundedDecoder, compile_grounding
from vglm.decode.grounded.grounding import Grounding
from vglm.decode.grounded.reading import Entity, Grounded, NamedPlace, WalkedEdge

__all__ = [
    "Entity",
    "Grounded",
    "GroundedDecoder",
    "Grounding",
    "NamedPlace",
    "WalkedEdge",
    "compile_grounding",
]
