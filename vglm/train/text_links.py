"""A bi-encoder over fixed text vectors of entities, trained to find the other end of a triple by its text.

After SimKGC (Wang et al., 2022): contrastive loss over the entities of the batch and random ones, with an additive margin, a
learnt temperature, and the given entity itself among the negatives. Known answers are left out of the negatives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vglm.encoder.link_parts import Float32, TextPart
from vglm.train.links_data import KnownAnswers, Longs

_RELATION_WIDTH = 128


@dataclass(frozen=True)
class TextOptions:
    """How the bi-encoder is trained; `inner` hidden units, `negatives` random entities per batch."""

    epochs: int = 12
    batch: int = 1024
    rate: float = 1e-3
    inner: int = 1024
    negatives: int = 1024
    margin: float = 0.02
    dropout: float = 0.1


class BiEncoder(nn.Module):
    """What `TextPart` computes, to train; candidates go through a hidden layer and a linear map of their own."""

    def __init__(self, vectors: Float32, num_relations: int, options: TextOptions) -> None:
        super().__init__()
        width = vectors.shape[1]
        self.options = options
        self.texts: Tensor
        self.register_buffer("texts", torch.from_numpy(vectors * math.sqrt(width)), persistent=False)
        self.relations = nn.Parameter(torch.randn(2 * num_relations, _RELATION_WIDTH))
        self.gates = nn.Parameter(torch.full((2 * num_relations, width), 0.5))
        self.query_skip, self.key_skip = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.query_inner = nn.Linear(width + _RELATION_WIDTH, options.inner)
        self.key_inner = nn.Linear(width, options.inner)
        self.query_outer, self.key_outer = (nn.Linear(options.inner, width) for _ in range(2))
        self.log_scale = nn.Parameter(torch.tensor(3.0))
        for skip in (
            self.query_skip,
            self.key_skip,
        ):  # the beginning is the similarity of the texts themselves
            nn.init.eye_(skip.weight)
        for outer in (self.query_outer, self.key_outer):
            outer.weight.data.mul_(0.3)

    def queries(self, given: Tensor, relations: Tensor) -> Tensor:
        """Unit vectors [B, k] of questions, int64 [B] each."""
        texts = self.texts[given]
        joined = torch.cat([texts, self.relations[relations]], 1)
        inner = F.dropout(F.gelu(self.query_inner(joined)), self.options.dropout, self.training)
        return F.normalize(self.query_skip(texts * self.gates[relations]) + self.query_outer(inner), dim=-1)

    def keys(self, entities: Tensor) -> Tensor:
        """Unit vectors [n, k] of candidates, int64 [n]."""
        texts = self.texts[entities]
        inner = F.dropout(F.gelu(self.key_inner(texts)), self.options.dropout, self.training)
        return F.normalize(self.key_skip(texts) + self.key_outer(inner), dim=-1)

    def loss(self, questions: Longs, known: KnownAnswers) -> Tensor:
        """Of int64 [B, 3] (given, directed relation, wanted)."""
        size = len(self.texts)
        given, relations, wanted = questions.T
        extra = torch.randint(size, (self.options.negatives,)).numpy()
        candidates = np.unique(np.concatenate([given, wanted, extra]))
        place = np.full(size, -1)
        place[candidates] = np.arange(len(candidates))
        rows, answers = known.pairs(given, relations)
        among = place[answers] >= 0
        with torch.autocast("cpu", torch.bfloat16):
            queries = self.queries(torch.from_numpy(given), torch.from_numpy(relations))
            cosines = queries @ self.keys(torch.from_numpy(candidates)).T
        cosines = cosines.float()
        every, own = torch.arange(len(given)), torch.from_numpy(place[wanted])
        wanted_cosines = cosines[every, own] - self.options.margin
        others = torch.from_numpy(rows[among]), torch.from_numpy(place[answers[among]])
        cosines = cosines.index_put(others, torch.tensor(-1e4)).index_put((every, own), wanted_cosines)
        return F.cross_entropy(cosines * self.log_scale.exp(), own)

    @torch.no_grad()
    def part(self) -> TextPart:
        """A copy for inference."""
        self.eval()
        size = len(self.texts)
        keys = torch.cat([self.keys(torch.arange(i, min(i + 4096, size))) for i in range(0, size, 4096)])
        self.train()

        def copied(tensor: Tensor) -> Float32:
            return tensor.detach().float().contiguous().numpy().copy()

        return TextPart(
            texts=copied(F.normalize(self.texts, dim=-1)),
            keys=copied(keys),
            relations=copied(self.relations),
            gates=copied(self.gates),
            skip=copied(self.query_skip.weight.T),
            inner=copied(self.query_inner.weight.T),
            inner_bias=copied(self.query_inner.bias),
            outer=copied(self.query_outer.weight.T),
            outer_bias=copied(self.query_outer.bias),
            scale=copied(self.log_scale.exp()[None]),
        )


class TextStage:
    """Training of a `BiEncoder`, an epoch at a time."""

    name = "text"

    def __init__(self, vectors: Float32, questions: Longs, num_relations: int, options: TextOptions) -> None:
        """`vectors` float32 [N, t] unit vectors of texts; `questions` int64 [n, 3], both directions."""
        self.module = BiEncoder(vectors, num_relations, options)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=options.rate, weight_decay=0.01)
        self._questions, self._known = questions, KnownAnswers(questions, num_relations)
        self._options = options

    def epoch(self, number: int) -> float:
        """One pass in random order, with a rate that falls to nothing over all epochs; the mean loss."""
        options, total = self._options, 0.0
        batches = torch.split(torch.randperm(len(self._questions)), options.batch)
        for step, rows in enumerate(batches):
            done = (number + step / len(batches)) / options.epochs
            warm = min(1.0, (number * len(batches) + step + 1) / 100)
            for group in self.optimizer.param_groups:
                group["lr"] = options.rate * warm * max(0.02, 1 - done)
            loss = self.module.loss(self._questions[rows.numpy()], self._known)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += float(loss.detach()) * len(rows)
        return total / len(self._questions)

    def part(self) -> TextPart:
        """A copy of what is learnt, for inference."""
        return self.module.part()
