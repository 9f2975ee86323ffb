"""``fleetdraft gguf``: a Hugging Face directory as a file for llama.cpp."""

from pathlib import Path
from typing import Annotated

import typer


def gguf(
    model: Annotated[Path, typer.Option("--model", metavar="DIR", help="Hugging Face directory of a Llama or Qwen2.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .gguf to write; an older one is replaced.")],
    storage: Annotated[
        str, typer.Option("--type", metavar="f32|f16|q8_0", help="How matrices are stored; q8_0 takes a quarter.")
    ] = "f32",
) -> None:
    """Writes a model as a GGUF file, which llama.cpp runs as a target.

    Of a bundle's own targets it reads BUNDLE/targets/NAME.

    Example:

      fleetdraft gguf --model models/target --out target.gguf --type q8_0
    """
    from .gguf_file import write_gguf

    write_gguf(model, out, storage)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {storage}")
