"""The command line, as vglm/__main__.py runs it.

Every command imports what it needs when it runs, so that `vglm --help` is quick.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from vglm import cli_options as opt
from vglm.__main__ import INTERRUPTED
from vglm.cli_bench import bench
from vglm.cli_demo import EPILOG as demo_epilog
from vglm.cli_demo import demo
from vglm.cli_eval import EPILOG as eval_epilog
from vglm.cli_eval import evaluate
from vglm.cli_export import EPILOG as export_epilog
from vglm.cli_export import export
from vglm.cli_graph import graph
from vglm.cli_serve import EPILOG as serve_epilog
from vglm.cli_serve import serve
from vglm.cli_train import train
from vglm.cli_train_model import DISTILL_EPILOG, distill
from vglm.errors import VGLMError

REFUSED = 2


def refuse(message: str) -> NoReturn:
    """One red line on standard error (red on a terminal only), and the exit status of bad input."""
    line = " ".join(message.split())
    red, plain = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"{red}error: {line}{plain}", file=sys.stderr, flush=True)
    raise SystemExit(REFUSED)


class Commands(TyperGroup):
    """Turns what a user can cause into one line and an exit status; anything else is a defect and keeps its
    traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except VGLMError as error:
            refuse(str(error))
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            refuse(
                "this command needs PyTorch: pip install 'vglm[train]' (docs/training.md has a build without CUDA)"
            )
        except KeyboardInterrupt:
            print(file=sys.stderr)  # after the ^C of the terminal
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader (such as `head`) has enough. Nothing may be flushed into the closed pipe at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None
        except OSError as error:
            if error.filename is None:
                raise
            refuse(f"{error.filename}: {error.strerror}")


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(wanted: bool) -> None:
    if wanted:
        from vglm import __version__

        print(f"vglm {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """vGLM: inference for graph language models, fast on machines without a GPU."""


@app.command(
    epilog="Examples:\n\n"
    "vglm pull --list\n\n"
    "vglm pull smollm2-135m-instruct\n\n"
    "vglm pull Qwen/Qwen2.5-0.5B-Instruct (any repository of the Hugging Face hub; needs vglm\\[hub])"
)
def pull(
    name: Annotated[str | None, typer.Argument(help="A known name, or owner/name on the hub.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the known names.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="With --list: as JSON.")] = False,
) -> None:
    """Fetch a known model or data set, once, and print where it is."""
    from vglm.cli_models import print_known

    if list_:
        print_known(json_)
    elif name is None:
        refuse("which model? Give a name, or --list to see the known ones")
    else:
        from vglm.model.pull import pull as fetch

        print(fetch(name))


@app.command(
    epilog="Examples:\n\n"
    'vglm generate smollm2-135m-instruct "The capital of France is" --max-tokens 16\n\n'
    "vglm generate model.gguf --chat --temperature 0.7 --seed 1 'Explain paging.'\n\n"
    "cat notes.txt | vglm generate model.gguf\n\n"
    "vglm generate model.gguf --file prompts.txt --lines --json > out.json"
)
def generate(
    model: opt.Model,
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Prompts; none, or -, reads one from standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read a prompt from this file.")] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Every line of the file or of standard input is a prompt.")
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Prompts are messages: apply the model's chat template.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    max_tokens: opt.MaxTokens = 128,
    temperature: opt.Temperature = 0.0,
    top_p: opt.TopP = 1.0,
    top_k: opt.TopK = 0,
    min_p: opt.MinP = 0.0,
    repetition_penalty: opt.Repetition = 1.0,
    presence_penalty: opt.Presence = 0.0,
    frequency_penalty: opt.Frequency = 0.0,
    stop: opt.Stop = None,
    seed: opt.Seed = None,
    n: Annotated[int, typer.Option(help="Completions of each prompt.", rich_help_panel="Sampling")] = 1,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on past end-of-text.", rich_help_panel="Sampling")
    ] = False,
    dtype: opt.Dtype = "auto",
    kv_cache_dtype: opt.KVDtype = "auto",
    threads: opt.Threads = None,
    max_model_len: opt.MaxModelLen = None,
    kv_cache_memory: opt.KVMemory = None,
    block_size: opt.BlockSize = 16,
    prefix_caching: opt.PrefixCaching = True,
) -> None:
    """Complete prompts. One prompt is printed while it is generated."""
    from vglm.cli_generate import complete, read_prompts
    from vglm.decode.sampling_params import SamplingParams

    params = SamplingParams(
        n=n,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        stop=stop or None,
        seed=seed,
        ignore_eos=ignore_eos,
    )
    engine = opt.given(
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        threads=threads,
        max_model_len=max_model_len,
        kv_cache_memory=kv_cache_memory,
        block_size=block_size,
        enable_prefix_caching=prefix_caching,
    )
    complete(model, read_prompts(prompts or [], file, lines), params, engine, chat=chat, as_json=json_)


@app.command(
    epilog="Examples:\n\n"
    "vglm chat smollm2-135m-instruct\n\n"
    "vglm chat model.gguf --system 'Answer in one sentence.' --temperature 0\n\n"
    "printf 'Hello\\nWhat is a graph?\\n' | vglm chat model.gguf (one message per line)\n\n"
    "Ctrl-C stops an answer; at the prompt Ctrl-C or Ctrl-D leaves. /clear forgets the conversation."
)
def chat(
    model: opt.Model,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: opt.MaxTokens = 512,
    temperature: opt.Temperature = 0.7,
    top_p: opt.TopP = 0.95,
    top_k: opt.TopK = 0,
    min_p: opt.MinP = 0.0,
    repetition_penalty: opt.Repetition = 1.0,
    stop: opt.Stop = None,
    seed: opt.Seed = None,
    dtype: opt.Dtype = "auto",
    kv_cache_dtype: opt.KVDtype = "auto",
    threads: opt.Threads = None,
    max_model_len: opt.MaxModelLen = None,
    kv_cache_memory: opt.KVMemory = None,
) -> None:
    """Talk with a model; it remembers the conversation."""
    from vglm.cli_chat import converse
    from vglm.decode.sampling_params import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop or None,
        seed=seed,
    )
    engine = opt.given(
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        threads=threads,
        max_model_len=max_model_len,
        kv_cache_memory=kv_cache_memory,
    )
    converse(model, params, engine, system)


@app.command(
    epilog="Examples:\n\n"
    "vglm inspect smollm2-135m-instruct\n\n"
    "vglm inspect model.gguf --tokens 4096 --sequences 16\n\n"
    "vglm inspect model.gguf --json | jq .parameters"
)
def inspect(
    model: opt.Model,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a sequence, for the memory need.")] = 2048,
    sequences: Annotated[int, typer.Option(min=1, help="Sequences at once, for the memory need.")] = 1,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show a model's architecture, sizes, formats, and the memory that it needs. No weight is read."""
    from vglm.cli_models import print_description

    print_description(model, tokens, sequences, json_)


app.command(epilog=demo_epilog)(demo)
app.command(epilog=serve_epilog)(serve)
app.command(epilog=export_epilog)(export)
app.command(epilog=DISTILL_EPILOG)(distill)
app.command("eval", epilog=eval_epilog)(evaluate)
app.add_typer(train, name="train")
app.add_typer(bench, name="bench")
app.add_typer(graph, name="graph")


def main() -> None:
    """The `vglm` command, once it is imported (see vglm/__main__.py)."""
    app(prog_name="vglm")
