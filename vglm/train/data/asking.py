"""What people ask of an invented world (vglm/train/data/world.py), with answers that only its graph gives."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from vglm.tasks.classification import QUESTION as LABEL_QUESTION
from vglm.tasks.classification import label_question
from vglm.train.data.world import ALL_KINDS, PLURALS, TOPICS, TRAINED, Relation, World, random_world
from vglm.train.samples import Sample, Turn

NOT_SAID = "The graph does not say."
MOST_NAMES = 6
QUESTIONS = 12


def world_sample(rng: random.Random, known: Sequence[Relation] = TRAINED) -> Sample | None:
    """Questions about a random world of `known` relations; None for one without edges."""
    world = random_world(rng, known)
    if not world.edges:
        return None
    turns = [turn for _ in range(QUESTIONS) if (turn := rng.choice(_KINDS)(world, rng)) is not None]
    return Sample("world", tuple(dict.fromkeys(turns)), world.graph) if turns else None


def _pick(world: World, rng: random.Random) -> tuple[Relation, tuple[tuple[str, str], ...]]:
    relation = rng.choice(list(world.edges))
    return relation, world.edges[relation][1]


def _targets(world: World, relation: Relation, source: str) -> list[str]:
    """Names in alphabetical order, as `named_facts` has them."""
    return _named(world, {target for node, target in _both_ways(world, relation) if node == source})


def _sources(world: World, relation: Relation, target: str) -> list[str]:
    return _named(world, {source for source, node in _both_ways(world, relation) if node == target})


def _both_ways(world: World, relation: Relation) -> Sequence[tuple[str, str]]:
    """The edges of a relation, those of a symmetric one in either direction."""
    pairs = world.edges[relation][1]
    return (*pairs, *((t, s) for s, t in pairs)) if relation.symmetric else pairs


def _named(world: World, nodes: set[str]) -> list[str]:
    return sorted(world.names[node] for node in nodes)


def _nodes(world: World, kind: str) -> list[str]:
    return [node for node, of in world.kinds.items() if of == kind]


def listing(names: Sequence[str]) -> str:
    """An answer that names entities, or says that there are none."""
    return ", ".join(names) if names else NOT_SAID


def _forward(world: World, rng: random.Random) -> Turn | None:
    relation, pairs = _pick(world, rng)
    source = rng.choice(pairs)[0]
    return _list(
        rng.choice(relation.forward).format(s=world.names[source]), _targets(world, relation, source)
    )


def _backward(world: World, rng: random.Random) -> Turn | None:
    relation, pairs = _pick(world, rng)
    target = rng.choice(pairs)[1]
    return _list(
        rng.choice(relation.backward).format(t=world.names[target]), _sources(world, relation, target)
    )


def _list(question: str, names: Sequence[str]) -> Turn | None:
    return Turn(question, listing(names)) if len(names) <= MOST_NAMES else None


def _anything(world: World, rng: random.Random) -> Turn | None:
    """Of an entity of the right kind, whether or not the graph says something."""
    relation, _ = _pick(world, rng)
    if rng.random() < 0.5:
        source = rng.choice(_nodes(world, relation.source))
        return _list(
            rng.choice(relation.forward).format(s=world.names[source]), _targets(world, relation, source)
        )
    target = rng.choice(_nodes(world, relation.target))
    return _list(
        rng.choice(relation.backward).format(t=world.names[target]), _sources(world, relation, target)
    )


def _so(world: World, rng: random.Random) -> Turn:
    relation, pairs = _pick(world, rng)
    holds = set(_both_ways(world, relation))
    pair = rng.choice(pairs)
    if rng.random() < 0.5:
        others = [other for other in _others(world, relation, pair) if other not in holds]
        pair = rng.choice(others or [pair])
    source, target = (world.names[node] for node in pair)
    return Turn(relation.so.format(s=source, t=target), "Yes." if pair in holds else "No.")


def _others(world: World, relation: Relation, pair: tuple[str, str]) -> list[tuple[str, str]]:
    """Pairs like this one: the other way round, or with another end."""
    source, target = pair
    found = [(other, target) for other in _nodes(world, relation.source) if other != target]
    found += [(source, other) for other in _nodes(world, relation.target) if other != source]
    if relation.source == relation.target:
        found += [(target, source)] * 2
    return found


def _count(world: World, rng: random.Random) -> Turn | None:
    """Names first, then their number: a small model counts what it has written."""
    relation, pairs = _pick(world, rng)
    if rng.random() < 0.5:
        source = rng.choice(pairs)[0]
        names = _targets(world, relation, source)
        asked = rng.choice(relation.forward).format(s=world.names[source])
        first, _, rest = asked.partition(" ")
        question = f"How many {rest}" if first == "Which" else f"{asked} How many are there?"
    elif world.typed:
        kind, names = _all_of_a_kind(world, rng)
        question = f"How many {kind} are in the graph?"
    else:
        return None
    if not 0 < len(names) <= MOST_NAMES:
        return None
    return Turn(question, f"{listing(names)}: {len(names)}")


def _of_kind(world: World, rng: random.Random) -> Turn | None:
    if not world.typed:
        return None
    kind, names = _all_of_a_kind(world, rng)
    words = rng.choice(("Which {} are in the graph?", "List all {}.", "Name the {}."))
    return _list(words.format(kind), names)


def _all_of_a_kind(world: World, rng: random.Random) -> tuple[str, list[str]]:
    """The plural of a kind, and the names of its entities in alphabetical order."""
    kind = rng.choice(list(world.kinds.values()))
    return PLURALS.get(kind, kind + "s"), sorted(world.names[node] for node in _nodes(world, kind))


def _two_hops(world: World, rng: random.Random) -> Turn | None:
    """A question about an entity that is only described: "Where is the company that owns Vela GmbH?"."""
    first, pairs = _pick(world, rng)
    source, target = rng.choice(pairs)
    others = [r for r in world.edges if r.source == first.source and r is not first]
    if not first.such or not others or len(_sources(world, first, target)) != 1:
        return None
    second = rng.choice(others)
    described = first.such.format(t=world.names[target])
    return _list(rng.choice(second.forward).format(s=described), _targets(world, second, source))


def _label_of_entity(world: World, rng: random.Random) -> Turn:
    """What an entity is, as `LLM.classify` asks."""
    node = rng.choice(list(world.names))
    right = world.kinds[node]
    words = rng.choice((LABEL_QUESTION, LABEL_QUESTION, "What kind of entity is {what}?", "What is {what}?"))
    return _label(words.format(what=world.names[node]), right, sorted(ALL_KINDS), rng)


def _label_of_graph(world: World, rng: random.Random) -> Turn | None:
    """What a graph is about, where its edges are all about one thing."""
    topics = {topic for relation in world.edges if (topic := TOPICS.get(relation.source))}
    if len(topics) != 1:
        return None
    words = rng.choice((LABEL_QUESTION.format(what="the graph"), "What is the graph about?"))
    return replace(_label(words, topics.pop(), sorted(set(TOPICS.values())), rng), named=False)


def _label(question: str, right: str, known: Sequence[str], rng: random.Random) -> Turn:
    wrong = [label for label in known if label != right]
    labels = [right, *rng.sample(wrong, rng.randint(1, min(4, len(wrong))))]
    rng.shuffle(labels)
    return Turn(label_question(question, labels), right)


_KINDS: tuple[Callable[[World, random.Random], Turn | None], ...] = (
    *(_forward, _forward, _backward, _backward, _anything, _anything),
    *(_so, _so, _so, _count, _of_kind, _two_hops, _two_hops),
    *(_label_of_entity, _label_of_entity, _label_of_graph),
)
