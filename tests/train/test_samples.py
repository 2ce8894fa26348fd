"""Training rows are the engine's prompts: tokens, positions and masks; and the model in torch is the model that is served."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.integration.helpers import tiny_model
from tests.reference import Reference
from vglm import LLM, SamplingParams
from vglm.assemble import score_output
from vglm.engine.request import RequestKind
from vglm.graph.graph import Graph
from vglm.model.adapter import save_adapter
from vglm.model.bundle import ADAPTER, write_card
from vglm.model.checkpoint import Checkpoint, open_checkpoint
from vglm.model.graph_card import GraphCard
from vglm.train.language_model import LanguageModel
from vglm.train.samples import IGNORED, Row, RowWriter, Sample, Turn

CARD = GraphCard(spans=True, facts=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(folder)


def family() -> Graph:
    nodes = [{"id": str(i), "name": f"person {i}", "text": "Someone who is " + "very " * i} for i in range(6)]
    edges = [
        {"source": str(i), "relation": "knows", "target": str(j)} for i in range(6) for j in range(6) if i < j
    ]
    return Graph.from_dict({"nodes": nodes, "edges": edges})


SAMPLE = Sample(
    "reading",
    (Turn("Who knows person 5?", "person 1"), Turn("Is there a path?", "Yes.", "Well: "), Turn("Why?", "x")),
    family(),
)


def some_adapter(model: LanguageModel, seed: int = 0) -> None:
    random_state = torch.Generator().manual_seed(seed)
    for value in model.adapter().values():
        value.copy_(0.3 * torch.randn(value.shape, generator=random_state) / value.shape[-1] ** 0.5)


def row_of(checkpoint: Checkpoint, mode: str, sample: Sample = SAMPLE) -> Row:
    row = RowWriter(checkpoint, CARD).row(sample, mode, 4_000)
    assert row is not None
    return row


@pytest.mark.parametrize("mode", ["spans", "sequential"])
def test_torch_computes_what_the_reference_computes(checkpoint: Checkpoint, mode: str) -> None:
    row = row_of(checkpoint, mode)
    model = LanguageModel(checkpoint, rank=4, alpha=8.0)
    some_adapter(model)
    added = {
        name: model.alpha / model.rank * (m.lora_b @ m.lora_a).detach().numpy()
        for name, m in model.low_rank()
    }
    reference = Reference(
        checkpoint.config, lambda name: checkpoint.tensor(name) + added.get(name, np.float32(0))
    )
    wanted = reference.logits(row.tokens.tolist(), row.positions.tolist(), visible=row.visible)
    arrays = (torch.from_numpy(a)[None] for a in (row.tokens, row.positions, row.visible))
    with torch.no_grad():
        found = model.logits(model.hidden(*arrays)[0]).numpy()
    scale = float(np.abs(wanted).max())
    assert float(np.abs(found - wanted).max()) < 0.05 * scale  # bfloat16 has 8 bits
    assert float(np.abs(found - wanted).mean()) < 0.008 * scale


@pytest.mark.parametrize("mode", ["spans", "sequential"])
def test_the_engine_gives_the_answers_the_same_probabilities(
    checkpoint: Checkpoint, folder: Path, tmp_path: Path, mode: str
) -> None:
    """A model directory with the adapter, served; against the row that it would be trained on, in torch."""
    model = LanguageModel(checkpoint, rank=4, alpha=8.0)
    some_adapter(model, 1)
    tensors = {name: value.numpy() for name, value in model.adapter().items()}
    save_adapter(tmp_path / ADAPTER, tensors, 4, 8.0)
    write_card(tmp_path, name="m", version="1", base_model=str(folder), graph=CARD, files=[ADAPTER])
    llm = LLM(str(tmp_path), dtype="bf16", kv_cache_dtype="bf16")
    turn = SAMPLE.turns[0]
    row = row_of(checkpoint, mode, Sample("reading", (turn,), SAMPLE.graph))
    asked = llm.asking.question(turn.question, family(), mode=mode)
    answer = [int(t) for t in row.targets[row.targets != IGNORED]]
    params = SamplingParams(max_tokens=1)
    (request,) = llm._run(
        lambda _: llm._add(asked.prompt, params, kind=RequestKind.SCORE, target_token_ids=answer), 1, False
    )
    served = np.array(score_output(request).token_logprobs)
    arrays = (torch.from_numpy(a)[None] for a in (row.tokens, row.positions, row.visible))
    with torch.no_grad():
        logits = model.logits(model.hidden(*arrays)[0]).log_softmax(-1)
    places = np.flatnonzero(row.targets != IGNORED)
    trained = logits[places, row.targets[places]].numpy()
    assert np.abs(served - trained).max() < 0.15


def test_a_row_has_a_branch_for_each_question_that_sees_the_graph_and_itself(checkpoint: Checkpoint) -> None:
    row = row_of(checkpoint, "spans")
    writer = RowWriter(checkpoint, CARD)
    prompts = [writer.asking.question(turn.question, family()).prompt for turn in SAMPLE.turns]
    graph = sum(len(spec.tokens) for spec in prompts[0].span_specs)
    assert row.num_turns == 3
    start = graph
    for prompt, turn in zip(prompts, SAMPLE.turns, strict=True):
        lead = writer.tokenizer.encode(turn.lead, add_special=False)
        answer = [*writer.tokenizer.encode(turn.answer, add_special=False), writer.asking.end_id]
        own = slice(start, start + len(prompt.token_ids) + len(lead) + len(answer))
        assert row.tokens[own].tolist() == [*prompt.token_ids, *lead, *answer]
        assert row.positions[own.start] == prompt.first_position
        assert row.visible[own, :graph].all()
        assert np.array_equal(row.visible[own, own], np.tri(own.stop - own.start, dtype=bool))
        assert row.visible[own, graph : own.start].sum() == row.visible[own, own.stop :].sum() == 0
        assert [t for t in row.targets[own].tolist() if t != IGNORED] == answer
        start = own.stop
    assert start == len(row)


def test_spans_see_their_parents_and_nothing_else(checkpoint: Checkpoint) -> None:
    row = row_of(checkpoint, "spans")
    specs = RowWriter(checkpoint, CARD).asking.question("Why?", family()).prompt.span_specs
    ends = np.cumsum([0, *(len(spec.tokens) for spec in specs)])
    for place, spec in enumerate(specs):
        for other in range(len(specs)):
            seen = row.visible[ends[place] : ends[place + 1], ends[other] : ends[other + 1]]
            if other == place:
                assert np.array_equal(seen, np.tri(len(spec.tokens), dtype=bool))
            else:
                assert seen.all() if other in spec.parents else not seen.any()


def test_turns_that_do_not_fit_are_left_out(checkpoint: Checkpoint) -> None:
    writer = RowWriter(checkpoint, CARD)
    whole = row_of(checkpoint, "spans")
    shorter = writer.row(SAMPLE, "spans", len(whole) - 1)
    assert shorter is not None
    assert shorter.num_turns == 2
    assert writer.row(SAMPLE, "spans", 10) is None


def test_text_in_a_graph_is_never_a_control_token(checkpoint: Checkpoint) -> None:
    graph = Graph.from_dict({"nodes": [{"id": "a", "name": "<|im_end|>"}], "edges": []})
    sample = Sample("reading", (Turn("What is it?", "<|im_end|>"),), graph)
    row = row_of(checkpoint, "spans", sample)
    plain = row_of(checkpoint, "spans", Sample("reading", (Turn("What is it?", "x"),), family()))
    special = RowWriter(checkpoint, CARD).tokenizer.special_ids
    count = [sum(token in special for token in one.tokens.tolist()) for one in (row, plain)]
    assert count[0] == count[1]


def test_rows_are_the_same_for_the_same_seed(checkpoint: Checkpoint) -> None:
    from vglm.train.data.reading import reading_sample

    writer = RowWriter(checkpoint, CARD)
    rows = [writer.row(reading_sample(family(), random.Random(3)), "spans", 4_000) for _ in range(2)]  # type: ignore[arg-type]
    assert rows[0] is not None
    assert rows[1] is not None
    assert np.array_equal(rows[0].tokens, rows[1].tokens)
