"""The options that several of the device's commands share. They run nothing."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ..pacing.controllers import CONTROLLERS
from ..runtimes.target_runtimes import RUNTIME_NAMES

BundleOption = Annotated[
    Path, typer.Option("--bundle", metavar="BUNDLE", help="Bundle directory; 'embedded' is the one shipped inside.")
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="DIR",
        help="Hugging Face directory the bundle was built for, or name of a target inside it (default: its first).",
    ),
]
TargetRuntimeOption = Annotated[
    str | None,
    typer.Option(
        "--target-runtime",
        metavar="|".join(RUNTIME_NAMES),
        help="What runs the target (default: genai for its directories, llamacpp for .gguf files, else onnx).",
    ),
]
PromptsOption = Annotated[
    Path, typer.Option("--prompts", metavar="FILE", help='JSONL, one {"prompt": …, "task": …} a line.')
]
AdapterOrReleaseOption = Annotated[
    Path | None,
    typer.Option(
        "--adapter",
        metavar="DIR",
        help="LoRA adapter (PEFT directory); with --state, the fleet's release.",
    ),
]
TemperatureOption = Annotated[float, typer.Option("--temperature", help="0 is greedy.")]
TokensOption = Annotated[int, typer.Option("--max-new-tokens", help="Longest text in target tokens.")]
DraftTokensOption = Annotated[int, typer.Option("--draft-tokens", help="Drafter tokens per block; 0 is no drafting.")]
BlockTokensOption = Annotated[int, typer.Option("--draft-tokens", help="Drafter tokens per block, at least 1.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]
_MOST_THREADS = 16 * (os.cpu_count() or 1)
"""More only wait for each other, and of very many a runtime never ends."""
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, max=_MOST_THREADS, help="Threads of the target.")]
TopP = Annotated[float, typer.Option("--top-p", help="Nucleus sampling; 1 is off.")]
TopK = Annotated[int, typer.Option("--top-k", help="Sample from the K likeliest; 0 is off.")]
MinP = Annotated[float, typer.Option("--min-p", help="Least share of the likeliest token's probability; 0 is off.")]
PenaltyOption = Annotated[
    float, typer.Option("--repetition-penalty", help="Above 1 makes tokens of the text less likely; 1 is off.")
]
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="End before this text; repeat for several.")
]
ControllerOption = Annotated[
    str,
    typer.Option(
        "--controller",
        metavar="|".join(CONTROLLERS),
        help="How many of --draft-tokens a block drafts: all, or by the clock as many as pay.",
    ),
]
PathsOption = Annotated[
    str,
    typer.Option(
        "--paths",
        metavar="full|online|direct",
        help="What may be drafted: all the drafter can spell, what the target emitted before, single tokens.",
    ),
]
NgramsOption = Annotated[
    Path | None,
    typer.Option(
        "--ngrams", metavar="FILE", help="With --paths online: the n-grams learned so far; read, and written again."
    ),
]
StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="DIR",
        help="Learn, and keep what is learned in this directory; the next run goes on from it. See 'fleetdraft state'.",
    ),
]
