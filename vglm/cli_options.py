"""Command-line options that several commands share, and what they become. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_ENGINE = "Engine"
_SAMPLING = "Sampling"

Model = Annotated[
    str,
    typer.Argument(help="A known name (`vglm pull --list`), a GGUF file, or a Hugging Face directory."),
]
BenchModel = Annotated[
    str,
    typer.Option("--model", "-m", help="A known name, a GGUF file, or a Hugging Face directory."),
]
Dtype = Annotated[
    str, typer.Option(help="Weights: auto (int8), bf16, int8, or int4.", rich_help_panel=_ENGINE)
]
KVDtype = Annotated[
    str,
    typer.Option(
        "--kv-cache-dtype", help="KV cache: auto (as the weights), bf16, or int8.", rich_help_panel=_ENGINE
    ),
]
Threads = Annotated[
    int | None, typer.Option(help="Processors to use; default: all.", rich_help_panel=_ENGINE)
]
MaxModelLen = Annotated[
    int | None, typer.Option(help="Longest prompt plus output, in tokens.", rich_help_panel=_ENGINE)
]
KVMemory = Annotated[
    str | None,
    typer.Option(
        "--kv-cache-memory", help="Limit of the KV cache, as in 512M or 2G.", rich_help_panel=_ENGINE
    ),
]
BlockSize = Annotated[int, typer.Option(help="Tokens in a block of the KV cache.", rich_help_panel=_ENGINE)]
PrefixCaching = Annotated[
    bool, typer.Option(help="Share the KV of equal prompt beginnings.", rich_help_panel=_ENGINE)
]
SpanCacheDir = Annotated[
    Path | None,
    typer.Option(
        "--span-cache-dir", help="Keep computed spans there across restarts.", rich_help_panel=_ENGINE
    ),
]
SpanCacheSize = Annotated[
    str,
    typer.Option(
        "--span-cache-size", help="Limit of that directory, as in 512M or 2G.", rich_help_panel=_ENGINE
    ),
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", help="Also write the figures as JSON; - writes them to standard output."
    ),
]

MaxTokens = Annotated[int, typer.Option(help="Most tokens to generate.", rich_help_panel=_SAMPLING)]
Temperature = Annotated[
    float,
    typer.Option(help="0 takes the likeliest token; higher is more varied.", rich_help_panel=_SAMPLING),
]
TopP = Annotated[
    float, typer.Option(help="Keep the likeliest tokens up to this mass.", rich_help_panel=_SAMPLING)
]
TopK = Annotated[int, typer.Option(help="Keep this many tokens; 0: all.", rich_help_panel=_SAMPLING)]
MinP = Annotated[
    float,
    typer.Option(help="Drop tokens below this fraction of the likeliest.", rich_help_panel=_SAMPLING),
]
Repetition = Annotated[
    float,
    typer.Option("--repetition-penalty", help="Above 1 discourages repetition.", rich_help_panel=_SAMPLING),
]
Presence = Annotated[
    float,
    typer.Option("--presence-penalty", help="Subtracted once per seen token.", rich_help_panel=_SAMPLING),
]
Frequency = Annotated[
    float,
    typer.Option("--frequency-penalty", help="Subtracted per occurrence.", rich_help_panel=_SAMPLING),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="End the output at this text; may be repeated.", rich_help_panel=_SAMPLING),
]
Seed = Annotated[
    int | None, typer.Option(help="Makes a sampled output repeatable.", rich_help_panel=_SAMPLING)
]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given: those that are not None."""
    return {name: value for name, value in options.items() if value is not None}
