"""`vglm export`: a model with its packed weights in a directory that opens by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vglm import cli_options as opt

EPILOG = (
    "Examples:\n\n"
    "vglm export open-autoglm-v1 --out autoglm-int8\n\n"
    "vglm export ./my-adapter --dtype int4 --out my-model && vglm serve my-model"
)


def export(
    model: opt.Model,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The directory to write; it must not be there yet.")
    ],
    dtype: Annotated[str, typer.Option(help="Weights: int8, int4 or bf16.")] = "int8",
) -> None:
    """Write a model as a directory that opens by itself: base and adapter merged, quantised, packed.

    The exported model answers to the bit as the model does with the same dtype, is ready as soon as it is mapped, and needs
    neither its base nor a packing step.
    """
    from vglm.errors import ModelError
    from vglm.model.export import export_model
    from vglm.model.packing import DTYPES
    from vglm.model.pull import resolve_model
    from vglm.progress import progress_bar

    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    with progress_bar(100, "packing weights", unit="%", delay=0.5) as advance:
        print(export_model(resolve_model(model), dtype, out, lambda done: advance(int(done * 100))))
