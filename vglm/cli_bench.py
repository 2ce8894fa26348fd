"""`vglm bench`: what this machine makes of a model, as tables and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vglm import cli_bench_serve
from vglm import cli_options as opt

bench = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Measure speed, memory, kernels and accuracy on this machine.",
)

_MODEL = "smollm2-135m-instruct"
_QUIET = "\n\nLet the machine do nothing else meanwhile."


@bench.command(
    epilog="Examples:\n\nvglm bench throughput\n\n"
    "vglm bench throughput -m model.gguf --num-prompts 64 --input-len 512 --output-len 128 --dtype bf16\n\n"
    "vglm bench throughput --text book.txt --json throughput.json" + _QUIET
)
def throughput(
    model: opt.BenchModel = _MODEL,
    num_prompts: Annotated[int, typer.Option(min=1, help="Requests.")] = 64,
    input_len: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 256,
    output_len: Annotated[int, typer.Option(min=2, help="Tokens generated from each.")] = 64,
    text: Annotated[Path | None, typer.Option(help="Cut the prompts from this text file.")] = None,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Sequences in one step.")] = 64,
    dtype: opt.Dtype = "auto",
    kv_cache_dtype: opt.KVDtype = "auto",
    threads: opt.Threads = None,
    json_: opt.Json = None,
) -> None:
    """Prefill and decode tokens per second."""
    from vglm.bench.report import check_writable
    from vglm.bench.throughput import Throughput, run

    check_writable(json_)
    work = Throughput(num_prompts=num_prompts, input_len=input_len, output_len=output_len, text=text)
    engine = opt.given(dtype=dtype, kv_cache_dtype=kv_cache_dtype, threads=threads, max_num_seqs=max_num_seqs)
    run(model, work, engine).publish(json_)


@bench.command(
    epilog="Examples:\n\nvglm bench latency\n\nvglm bench latency --batch 32 --repeats 20 --json -" + _QUIET
)
def latency(
    model: opt.BenchModel = _MODEL,
    input_len: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    output_len: Annotated[int, typer.Option(min=2, help="Tokens generated from each.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds.")] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Requests that arrive together, besides batch 1.")] = 8,
    dtype: opt.Dtype = "auto",
    kv_cache_dtype: opt.KVDtype = "auto",
    threads: opt.Threads = None,
    json_: opt.Json = None,
) -> None:
    """Percentiles of time to first token and between tokens; Python's overhead per step."""
    from vglm.bench.latency import Latency, run
    from vglm.bench.report import check_writable

    check_writable(json_)
    work = Latency(input_len=input_len, output_len=output_len, repeats=repeats, batch=batch)
    sequences = max(64, batch)
    engine = opt.given(dtype=dtype, kv_cache_dtype=kv_cache_dtype, threads=threads, max_num_seqs=sequences)
    run(model, work, engine).publish(json_)


@bench.command(
    epilog="Examples:\n\nvglm bench memory\n\n"
    "vglm bench memory --trace AzureLLMInferenceTrace_conv.csv --requests 2000 --json memory.json\n\n"
    "The trace is a CSV file with columns TIMESTAMP, ContextTokens, GeneratedTokens."
)
def memory(
    model: opt.BenchModel = _MODEL,
    trace: Annotated[
        Path | None, typer.Option(help="Lengths of real requests; default: a log-normal fit of them.")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests of the trace.")] = 1000,
    max_model_len: Annotated[int, typer.Option(min=16, help="What a static reservation reserves.")] = 8192,
    kv_tokens: Annotated[int, typer.Option(min=16, help="KV memory in tokens.")] = 131072,
    measured: Annotated[int, typer.Option(min=1, help="Requests to run the real model on.")] = 256,
    scale: Annotated[int, typer.Option(min=1, help="Divides the lengths of that run.")] = 8,
    dtype: opt.Dtype = "auto",
    kv_cache_dtype: opt.KVDtype = "auto",
    threads: opt.Threads = None,
    json_: opt.Json = None,
) -> None:
    """Use of KV memory, static reservation against pages; the block pool against malloc."""
    from vglm.bench.memory import Memory, run
    from vglm.bench.report import check_writable

    check_writable(json_)
    work = Memory(
        trace=trace,
        requests=requests,
        max_model_len=max_model_len,
        kv_tokens=kv_tokens,
        measured=measured,
        scale=scale,
    )
    run(model, work, opt.given(dtype=dtype, kv_cache_dtype=kv_cache_dtype, threads=threads)).publish(json_)


@bench.command(
    epilog="Examples:\n\nvglm bench kernels\n\n"
    "vglm bench kernels --isa amx --isa avx2 --type int8 --rows 1 --rows 512 --json kernels.json" + _QUIET
)
def kernels(
    model: opt.BenchModel = _MODEL,
    isa: Annotated[list[str] | None, typer.Option(help="Instruction sets; default: all there are.")] = None,
    type_: Annotated[list[str] | None, typer.Option("--type", help="Weight types; default: all.")] = None,
    rows: Annotated[list[int] | None, typer.Option(min=1, help="Rows (M); default: 1, 8, 64, 512.")] = None,
    megabytes: Annotated[int, typer.Option(min=1, help="Least size of the weights for M = 1.")] = 256,
    threads: opt.Threads = None,
    json_: opt.Json = None,
) -> None:
    """Every kernel of every instruction set as a share of the machine's measured peak."""
    from vglm.bench.kernels import TYPES, Kernels, run
    from vglm.bench.report import check_writable

    check_writable(json_)
    work = Kernels(
        isas=tuple(isa) if isa else None,
        rows=tuple(rows) if rows else (1, 8, 64, 512),
        types=tuple(type_) if type_ else TYPES,
        threads=threads,
        megabytes=megabytes,
    )
    run(model, work).publish(json_)


@bench.command(
    epilog="Examples:\n\nvglm bench accuracy\n\n"
    "vglm bench accuracy --text book.txt --tokens 51200 --dtypes int8+int8 --dtypes bf16+bf16"
)
def accuracy(
    model: opt.BenchModel = _MODEL,
    text: Annotated[
        Path | None, typer.Option(help="Text to predict; default: definitions of a medical ontology.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of text.")] = 20480,
    context: Annotated[int, typer.Option(min=2, help="Tokens of one context.")] = 512,
    dtypes: Annotated[
        list[str] | None, typer.Option(help="Weights+KV, as in int8+bf16; default: all pairs.")
    ] = None,
    threads: opt.Threads = None,
    json_: opt.Json = None,
) -> None:
    """KL divergence and perplexity of each dtype against an fp32 forward pass in numpy."""
    from vglm.bench.accuracy import DEFAULT_PAIRS, Accuracy, run
    from vglm.bench.report import check_writable

    check_writable(json_)
    pairs = tuple(dtypes) if dtypes else DEFAULT_PAIRS
    run(model, Accuracy(text=text, tokens=tokens, context=context, pairs=pairs, threads=threads)).publish(
        json_
    )


@bench.command(
    epilog="Examples:\n\nvglm bench candidates\n\n"
    "vglm bench candidates --size 1000 --size 12000 --prompt-len 2000 --json candidates.json" + _QUIET
)
def candidates(
    model: opt.BenchModel = _MODEL,
    size: Annotated[
        list[int] | None, typer.Option(min=1, help="Names to score; default: 100, 1000 and 5000.")
    ] = None,
    prompt_len: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 500,
    alone: Annotated[int, typer.Option(min=0, help="Names of each list to score one by one as well.")] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Of so many runs the fastest counts.")] = 3,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Made-up names, not diseases.")] = False,
    dtype: opt.Dtype = "auto",
    kv_cache_dtype: opt.KVDtype = "auto",
    threads: opt.Threads = None,
    json_: opt.Json = None,
) -> None:
    """Candidates scored per second over the trie of their names, against one request for each."""
    from vglm.bench.candidates import Candidates, run
    from vglm.bench.report import check_writable

    check_writable(json_)
    work = Candidates(
        sizes=tuple(size) if size else (100, 1000, 5000),
        prompt_len=prompt_len,
        alone=alone,
        repeats=repeats,
        synthetic=synthetic,
    )
    run(model, work, opt.given(dtype=dtype, kv_cache_dtype=kv_cache_dtype, threads=threads)).publish(json_)


bench.command(epilog=cli_bench_serve.EPILOG)(cli_bench_serve.serve)


@bench.command(
    epilog="Examples:\n\nvglm bench stream\n\n"
    "vglm bench stream --streams 64 --streams 256 --pace 12400 --pace 39800 --json stream.json" + _QUIET
)
def stream(
    model: opt.BenchModel = _MODEL,
    streams: Annotated[
        list[int] | None, typer.Option(min=1, help="Streams at once; default: 64 and 256.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of each stream.")] = 512,
    pace: Annotated[
        list[float] | None, typer.Option(help="Also at so many tokens/s of all streams; may be repeated.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Of so many runs the one with the least latency counts.")
    ] = 3,
    json_: opt.Json = None,
) -> None:
    """Delivery of tokens through the real server: coalesced against one message per token."""
    from vglm.bench.report import check_writable
    from vglm.bench.stream import StreamWork, run

    check_writable(json_)
    work = StreamWork(
        streams=tuple(streams) if streams else (64, 256),
        tokens=tokens,
        paces=tuple(pace or ()),
        repeats=repeats,
    )
    run(model, work).publish(json_)


@bench.command(
    epilog="Examples:\n\nvglm bench retrieval\n\n"
    "vglm bench retrieval --graph edges.sif.gz --node-table nodes.tsv --json retrieval.json" + _QUIET
)
def retrieval(
    graph: Annotated[
        Path | None, typer.Option(help="A graph file or folder; default: a made-up graph.")
    ] = None,
    node_table: Annotated[
        Path | None, typer.Option(help="Names of the nodes of a file of triples: a table with id and name.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=10, help="Nodes of the made-up graph.")] = 200_000,
    edges: Annotated[int, typer.Option(min=10, help="Edges of the made-up graph.")] = 1_000_000,
    questions: Annotated[int, typer.Option(min=1, help="Questions of each kind.")] = 200,
    hops: Annotated[int, typer.Option(min=0, max=8, help="How far from the entities to look.")] = 2,
    budget: Annotated[int, typer.Option(min=1, help="Tokens of the sub-graph.")] = 1024,
    json_: opt.Json = None,
) -> None:
    """Sub-graphs for questions: the index, milliseconds per question by method, and what an edit costs."""
    from vglm.bench.report import check_writable
    from vglm.bench.retrieval import Retrieval, run

    check_writable(json_)
    work = Retrieval(
        graph=graph,
        node_table=node_table,
        nodes=nodes,
        edges=edges,
        questions=questions,
        hops=hops,
        budget=budget,
    )
    run(work).publish(json_)


@bench.command(
    epilog="Examples:\n\nvglm bench graph\n\nvglm bench graph --graph hetionet.json --graph wn18rr.tsv --repeats 16"
    + _QUIET
)
def graph(
    model: opt.BenchModel = _MODEL,
    nodes: Annotated[int, typer.Option(min=1, help="Records of a question's graph.")] = 24,
    words: Annotated[int, typer.Option(min=1, help="Words of a record's text.")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Questions for each figure.")] = 8,
    large: Annotated[int, typer.Option(min=10, help="Records of the large graph.")] = 1000,
    shuffles: Annotated[int, typer.Option(min=2, help="Orders of one graph.")] = 100,
    graph_: Annotated[
        list[Path] | None,
        typer.Option("--graph", help="Also how full this graph's pages are; may be repeated."),
    ] = None,
    dtype: opt.Dtype = "auto",
    kv_cache_dtype: opt.KVDtype = "auto",
    threads: opt.Threads = None,
    json_: opt.Json = None,
) -> None:
    """Questions over graphs: time to first token by what is new, order, edits, and the use of pages."""
    from vglm.bench.graph_spans import GraphSpans, run
    from vglm.bench.report import check_writable

    check_writable(json_)
    work = GraphSpans(
        nodes=nodes, words=words, repeats=repeats, large=large, shuffles=shuffles, graphs=tuple(graph_ or ())
    )
    run(model, work, opt.given(dtype=dtype, kv_cache_dtype=kv_cache_dtype, threads=threads)).publish(json_)


@bench.command(
    epilog="Examples:\n\nvglm bench suggestion\n\nvglm bench suggestion --patients 100 --findings 12 --json suggestion.json"
    + _QUIET
)
def suggestion(
    model: opt.BenchModel = "open-autoglm-v1",
    patients: Annotated[int, typer.Option(min=1, help="Simulated patients.")] = 40,
    findings: Annotated[int, typer.Option(min=1, max=50, help="Findings of each.")] = 8,
    top: Annotated[int, typer.Option(min=1, help="Candidates with evidence.")] = 3,
    words: Annotated[int, typer.Option(min=1, help="Most tokens of the explanation.")] = 64,
    dtype: opt.Dtype = "auto",
    kv_cache_dtype: opt.KVDtype = "auto",
    threads: opt.Threads = None,
    json_: opt.Json = None,
) -> None:
    """A medical suggestion end to end: time to the ranking of all diseases, and to the first explained word."""
    from vglm.bench.report import check_writable
    from vglm.bench.suggestion import Suggestions, run

    check_writable(json_)
    work = Suggestions(patients=patients, findings=findings, top=top, words=words)
    run(model, work, opt.given(dtype=dtype, kv_cache_dtype=kv_cache_dtype, threads=threads)).publish(json_)


@bench.command(
    epilog="Examples:\n\nvglm bench constrained\n\n"
    "vglm bench constrained --nodes 200000 --edges 1000000 --size 10 --size 1000000 --json constrained.json"
    + _QUIET
)
def constrained(
    model: opt.BenchModel = _MODEL,
    nodes: Annotated[int, typer.Option(min=10, help="Nodes of the made-up graph.")] = 20_000,
    edges: Annotated[int, typer.Option(min=10, help="Edges of the made-up graph.")] = 100_000,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each free text.")] = 48,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Requests at once; may be repeated; default: 1, 8 and 32.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds, of which the median counts.")] = 5,
    size: Annotated[
        list[int] | None, typer.Option(min=1, help="Compile for graphs of so many names; may be repeated.")
    ] = None,
    dtype: opt.Dtype = "auto",
    kv_cache_dtype: opt.KVDtype = "auto",
    threads: opt.Threads = None,
    json_: opt.Json = None,
) -> None:
    """Grounded decoding: cost per sampled token, what forced tokens save, and compiling."""
    from vglm.bench.constrained import Constrained, run
    from vglm.bench.report import check_writable

    check_writable(json_)
    work = Constrained(
        nodes=nodes,
        edges=edges,
        tokens=tokens,
        batches=tuple(batch) if batch else (1, 8, 32),
        repeats=repeats,
        sizes=tuple(size) if size else (10, 1_000, 100_000),
    )
    run(model, work, opt.given(dtype=dtype, kv_cache_dtype=kv_cache_dtype, threads=threads)).publish(json_)
