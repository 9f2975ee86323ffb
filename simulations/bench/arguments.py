"""Command-line options that the decoding benchmarks share. They know no benchmark."""

from pathlib import Path
from typing import Annotated

import typer

BundleOption = Annotated[Path, typer.Option("--bundle", metavar="BUNDLE", help="Bundle directory.")]
TargetOption = Annotated[
    str | None,
    typer.Option("--target", metavar="DIR", help="Directory or name (default: the first of other vocabulary)."),
]
PromptsOption = Annotated[
    Path | None, typer.Option("--prompts", metavar="FILE", help="JSONL (default: the embedded held-out prompts).")
]
AdapterOption = Annotated[Path | None, typer.Option("--adapter", metavar="DIR", help="LoRA adapter (PEFT).")]
TokensOption = Annotated[int, typer.Option("--max-new-tokens", help="Longest text in target tokens.")]
DraftTokensOption = Annotated[int, typer.Option("--draft-tokens", min=1, help="Drafter tokens per block.")]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the rows here.")]
