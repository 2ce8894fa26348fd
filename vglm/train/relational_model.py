"""The relational encoder in torch, for training; `vglm.encoder.relational` is the same without torch.

After ULTRA (Galkin et al., ICLR 2024): conditional message passing over the interactions of relations gives each relation
a vector that depends on the queried relation; conditional message passing over the entities (NBFNet, Zhu et al., 2021) with
those vectors as weights gives each entity a state that depends on the queried head; a small network scores the states.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vglm.encoder.relational import RelationalEncoder
from vglm.encoder.relational_structure import NUM_INTERACTIONS, RelationalStructure
from vglm.encoder.relational_weights import FORMAT, RelationalShape, arranged


class Aggregate(torch.autograd.Function):
    """Sum over edges (u, r, v) of states[b, u] * weights[b, r], by the native kernel."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weights: Tensor, structure: RelationalStructure) -> Tensor:
        states, weights = states.contiguous(), weights.contiguous()
        ctx.save_for_backward(states, weights)
        ctx.structure = structure
        out = torch.zeros_like(states)
        structure.propagation.aggregate(states.detach().numpy(), weights.detach().numpy(), out.numpy())
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        states, weights = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        structure: RelationalStructure = ctx.structure
        of_states, of_weights = torch.zeros_like(states), torch.zeros_like(weights)
        # An edge (u, r, v) backwards is the edge (v, inverse of r, u), which is listed too.
        backwards = torch.cat(weights.detach().split(structure.num_relations, dim=1)[::-1], dim=1)
        structure.propagation.aggregate(gradient.numpy(), backwards.numpy(), of_states.numpy())
        structure.propagation.weight_gradient(states.detach().numpy(), gradient.numpy(), of_weights.numpy())
        return of_states, of_weights, None


class RelationalModel(nn.Module):
    """Scores of all entities as the tail of (head, relation, ?); relation r + R asks for (?, r, head)."""

    def __init__(self, shape: RelationalShape) -> None:
        super().__init__()
        self.shape = shape
        d = shape.width
        self.relation_query = nn.Parameter(torch.ones(d))
        self.entity_start = nn.Parameter(torch.full((d,), 0.1))
        self.relation_mix = nn.ModuleList(
            nn.Linear(d * (1 + NUM_INTERACTIONS), d) for _ in range(shape.relation_layers)
        )
        self.relation_norm = nn.ModuleList(nn.LayerNorm(d) for _ in range(shape.relation_layers))
        self.edge_hidden = nn.ModuleList(nn.Linear(d, d) for _ in range(shape.entity_layers))
        self.edge_weight = nn.ModuleList(nn.Linear(d, d) for _ in range(shape.entity_layers))
        self.entity_mix = nn.ModuleList(nn.Linear(3 * d, d) for _ in range(shape.entity_layers))
        self.entity_norm = nn.ModuleList(nn.LayerNorm(d) for _ in range(shape.entity_layers))
        self.score_hidden = nn.Linear(2 * d, 2 * d)
        self.score = nn.Linear(2 * d, 1)

    def forward(self, structure: RelationalStructure, heads: Tensor, relations: Tensor) -> Tensor:
        """int64[B] heads and relations (0..2 R - 1) to float32[B, N]."""
        distinct, which = torch.unique(relations, return_inverse=True)
        vectors = self.relation_vectors(structure, distinct)[which]
        return self.entity_scores(structure, heads, relations, vectors)

    def relation_vectors(self, structure: RelationalStructure, queries: Tensor) -> Tensor:
        """A vector of each relation given the queried one: int64[Q] to float32[Q, 2 R, width]."""
        interactions = torch.from_numpy(structure.interactions)
        count, size = len(queries), interactions.shape[1]
        x = torch.zeros(count, size, self.shape.width)
        x[torch.arange(count), queries] = self.relation_query
        for mix, norm in zip(self.relation_mix, self.relation_norm, strict=True):
            near = torch.einsum("kij,qjd->qikd", interactions, x).flatten(2)
            x = x + torch.relu(norm(mix(torch.cat([x, near], dim=2))))
        return x

    def entity_scores(
        self, structure: RelationalStructure, heads: Tensor, relations: Tensor, vectors: Tensor
    ) -> Tensor:
        """float32[B, N] from the relation vectors of each query, float32[B, 2 R, width]."""
        batch = torch.arange(len(heads))
        query = vectors[batch, relations]
        boundary = torch.zeros(len(heads), structure.num_nodes, self.shape.width)
        boundary[batch, heads] = query
        mean = 1 / (torch.from_numpy(structure.degree).float().unsqueeze(1) + 1)
        states = boundary + self.entity_start
        layers = zip(self.edge_hidden, self.edge_weight, self.entity_mix, self.entity_norm, strict=True)
        for hidden, weight, mix, norm in layers:
            weights = weight(torch.relu(hidden(vectors)))
            near = Aggregate.apply(states, weights, structure) + boundary  # type: ignore[no-untyped-call]
            mixed = mix(torch.cat([states, near * mean, near * mean.sqrt()], dim=2))
            states = states + torch.relu(norm(mixed))
        query = query.unsqueeze(1).expand_as(states)
        scores: Tensor = self.score(torch.relu(self.score_hidden(torch.cat([states, query], dim=2))))
        return scores.squeeze(2)

    def encoder(self) -> RelationalEncoder:
        """The same network without torch."""
        tensors = {name: tensor.numpy() for name, tensor in self.state_dict().items()}
        return RelationalEncoder(arranged(self.shape, tensors))

    def save(self, path: Path, **notes: str) -> None:
        """Write a file that `RelationalEncoder.load` reads; `notes` join its metadata."""
        metadata = {"format": FORMAT, "shape": json.dumps(asdict(self.shape)), **notes}
        save_file(self.state_dict(), path, metadata)
