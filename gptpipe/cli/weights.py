"""`gptpipe import` and `export`: weights in and out."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from gptpipe.cli.options import Json, named, print_answer, tracking
from gptpipe.errors import UserError
from gptpipe.extras import install_hint


def import_(
    weights: Annotated[
        str, typer.Argument(help="Any WEIGHTS: Hugging Face folder or hf:NAME, .safetensors, .pth, checkpoint.")
    ],
    out: Annotated[str, typer.Option(callback=named, help="Folder or URL; the checkpoint lies in <out>/step-<step>/.")],
    context: Annotated[int, typer.Option(min=0, help="Another context: less cuts it, more extends it.")] = 0,
    tokenizer: Annotated[str, typer.Option(help="Another tokenizer, for which embeddings are resized.")] = "",
    as_json: Json = False,
) -> None:
    """Weights of any supported layout to a checkpoint."""
    from gptpipe.tracking.registry import resolve_weights
    from gptpipe.weights.adapt import import_weights

    checkpoint = import_weights(resolve_weights(weights, tracking()), out, context_length=context, tokenizer=tokenizer)
    print_answer(
        {"checkpoint": checkpoint.url, "step": checkpoint.step, "sha256": checkpoint.model_sha256},
        as_json,
        checkpoint.url,
    )


def export(
    weights: Annotated[str, typer.Argument(help="Any WEIGHTS.")],
    out: Annotated[
        str, typer.Option(callback=named, help="Folder or URL that holds nothing yet; for gguf a file of that ending.")
    ],
    layout: Annotated[
        Literal["hf", "gguf"] | None,
        typer.Option("--format", help="hf for transformers, gguf for llama.cpp; by default as --out is called."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the weights in it: float32, bfloat16, float16, and q8_0 in gguf.")
    ] = "float32",
    as_json: Json = False,
) -> None:
    """Weights to what other programs read, tokenizer included: a Hugging Face folder, or a GGUF file."""
    from gptpipe.export.folder import DTYPES, export_hf
    from gptpipe.tracking.registry import resolve_weights

    layout = layout or ("gguf" if out.endswith(".gguf") else "hf")
    if layout == "gguf":
        try:
            from gptpipe.export.gguf import TYPES, export_gguf
        except ImportError:
            raise UserError(
                "the gguf package is not installed", where="--format gguf", hint=install_hint("gguf")
            ) from None
        types, write = list(TYPES), export_gguf
    else:
        types, write = list(DTYPES), export_hf
    if dtype not in types:
        hint = "q8_0 is for --format gguf" if dtype == "q8_0" else "leave it out for float32"
        raise UserError(f"{dtype!r} is not one of {', '.join(types)}", where="--dtype", hint=hint)
    written = write(resolve_weights(weights, tracking()), out, dtype)
    print_answer({"out": written, "format": layout, "dtype": dtype}, as_json, written)
