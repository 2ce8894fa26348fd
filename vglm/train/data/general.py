"""What is not to be forgotten: the base model's own replies and plain texts, on which the adapted model is held to the base."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vglm.train.samples import Sample, Turn

if TYPE_CHECKING:
    from vglm import LLM

REQUESTS = (
    "What is {}?",
    "Explain {} to a child.",
    "Write a short story about {}.",
    "List three facts about {}.",
    "Write a poem about {}.",
    "Why do people care about {}?",
    "Give me advice about {}.",
    "Write an email to a friend about {}.",
)
TOPICS = """
rain, music, bridges, tea, gravity, cats, the moon, bicycles, bread, the sea, money, winter,
friendship, volcanoes, chess,  gardens, trains, sleep, mathematics, honey, maps, robots, the heart,
rivers, letters, football, mountains, cooking, history,  stars, glass, birds, school, elections,
painting, the internet, vaccines, forests, time, language, shoes, whales, electricity,  castles,
jazz, soil, lighthouses, clocks, ants, deserts, poetry, batteries, islands, courage, libraries,
steel, markets,  dreams, fire, salt, theatre, engines, neighbours, satellites, apples, the brain,
kites, laws, ice, photography, wool, dancing
"""


def requests(count: int, rng: random.Random) -> list[str]:
    """Different requests that have nothing to do with graphs."""
    every = [
        words.format(topic) for words in REQUESTS for topic in TOPICS.replace("\n", " ").strip().split(", ")
    ]
    return rng.sample(every, min(count, len(every)))


def write_replies(llm: LLM, path: Path, count: int = 400, seed: int = 0) -> None:
    """The base model's replies, sampled at temperature 0.8, a line of JSON each."""
    from vglm import SamplingParams

    asked = requests(count, random.Random(seed))
    params = [
        SamplingParams(max_tokens=160, temperature=0.8, top_p=0.95, seed=seed + i) for i in range(len(asked))
    ]
    outputs = llm.chat([[{"role": "user", "content": text}] for text in asked], params)
    lines = [json.dumps([text, output.outputs[0].text]) for text, output in zip(asked, outputs, strict=True)]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def read_replies(path: Path) -> list[Sample]:
    """What `write_replies` wrote."""
    pairs = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [Sample("general", (Turn(question, answer),)) for question, answer in pairs if answer.strip()]


def text_samples(texts: Sequence[str], rng: random.Random, length: int = 900) -> list[Sample]:
    """Pieces of plain texts of about `length` characters."""
    pieces = [text[i : i + length] for text in texts for i in range(0, len(text), length)]
    rng.shuffle(pieces)
    return [Sample("general", (Turn("", piece),), raw=True) for piece in pieces if len(piece) > 40]
