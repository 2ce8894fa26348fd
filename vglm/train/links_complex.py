"""ComplEx with reciprocal relations, N3 regularisation and relation prediction, trained as classification.

Sources: Trouillon et al. (2016), ComplEx; Lacroix et al. (2018), N3, reciprocal relations and 1-vs-all softmax; Chen et al.
(2021), "Relation Prediction as an Auxiliary Training Objective for Improving Multi-Relational Graph Representations".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vglm.encoder.link_parts import ComplexPart, Longs


@dataclass(frozen=True)
class ComplexOptions:
    """How ComplEx is trained; `rank` complex numbers per entity, `epochs` at most (the best on validation is kept).

    `negatives`: 0 compares with every entity; a number with so many random ones per batch, for large graphs.
    """

    rank: int = 500
    epochs: int = 60
    batch: int = 100
    rate: float = 0.1
    regularisation: float = 0.003
    relation_weight: float = 0.1
    negatives: int = 0
    kind: str = "complex"  # or "distmult", a baseline


class Factors(nn.Module):
    """The vectors of `ComplexPart`, to train; `[real halves | imaginary halves]`. DistMult has no imaginary halves."""

    def __init__(self, num_entities: int, num_relations: int, options: ComplexOptions) -> None:
        super().__init__()
        width = options.rank * (2 if options.kind == "complex" else 1)
        sparse = options.negatives > 0
        self.entities = nn.Embedding(num_entities, width, sparse=sparse)
        self.relations = nn.Embedding(2 * num_relations, width)
        for table in (self.entities, self.relations):
            nn.init.normal_(table.weight, std=1e-3)
        self.options = options

    def loss(self, questions: Tensor) -> Tensor:
        """Of int64 [B, 3] (given, directed relation, wanted)."""
        given, relation, wanted = questions.unbind(1)
        options = self.options
        if options.negatives:
            extra = torch.randint(self.entities.num_embeddings, (options.negatives,))
            candidates, places = torch.unique(torch.cat([given, wanted, extra]), return_inverse=True)
            keys = self.entities(candidates)
            given, wanted = places[: len(given)], places[len(given) : 2 * len(given)]
        else:
            keys = self.entities.weight
        left, middle, right = keys[given], self.relations(relation), keys[wanted]
        scores = _product(left, middle, options) @ keys.T
        loss = F.cross_entropy(scores.float(), wanted)
        if options.relation_weight:
            # Re(<left, w, conj(right)>) is the inner product of w with conj(left) * right.
            scores = _product(_conjugate(left, options), right, options) @ self.relations.weight.T
            loss = loss + options.relation_weight * F.cross_entropy(scores, relation)
        cubes = _cubed_moduli(torch.cat([left, middle, right]), options)
        return loss + options.regularisation * cubes / len(questions)

    def part(self) -> ComplexPart:
        """A copy for inference."""
        tables = [table.weight.detach() for table in (self.entities, self.relations)]
        if self.options.kind != "complex":
            tables = [torch.cat([table, torch.zeros_like(table)], 1) for table in tables]
        entities, relations = (table.numpy().copy() for table in tables)
        return ComplexPart(entities, relations)


class ComplexStage:
    """Training of `Factors`, an epoch at a time."""

    name = "complex"

    def __init__(
        self, questions: Longs, num_entities: int, num_relations: int, options: ComplexOptions
    ) -> None:
        """`questions` int64 [n, 3] of (given, directed relation, wanted), both directions."""
        self.module = Factors(num_entities, num_relations, options)
        self.optimizer = torch.optim.Adagrad(self.module.parameters(), lr=options.rate)
        self._questions = torch.from_numpy(questions)

    def epoch(self, number: int) -> float:
        """One pass in random order; the mean loss."""
        options, total = self.module.options, 0.0
        for rows in torch.split(torch.randperm(len(self._questions)), options.batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=options.negatives > 0):
                loss = self.module.loss(self._questions[rows])
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += float(loss.detach()) * len(rows)
        return total / len(self._questions)

    def part(self) -> ComplexPart:
        """A copy of what is learnt, for inference."""
        return self.module.part()


def _product(left: Tensor, right: Tensor, options: ComplexOptions) -> Tensor:
    if options.kind != "complex":
        return left * right
    a, b = left.chunk(2, -1)
    c, d = right.chunk(2, -1)
    return torch.cat([a * c - b * d, a * d + b * c], -1)


def _conjugate(values: Tensor, options: ComplexOptions) -> Tensor:
    if options.kind != "complex":
        return values
    real, imaginary = values.chunk(2, -1)
    return torch.cat([real, -imaginary], -1)


def _cubed_moduli(values: Tensor, options: ComplexOptions) -> Tensor:
    """The sum of |z|^3, which N3 keeps small."""
    squares = values.square()
    if options.kind == "complex":
        real, imaginary = squares.chunk(2, -1)
        squares = real + imaginary
    squares = squares.clamp_min(1e-18)  # the square root has no slope at 0
    return (squares * squares.sqrt()).sum()
