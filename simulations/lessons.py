"""Lessons as files: what generated texts teach, for devices that train and have no engine of their own.

Run it as ``python -m fleetdraft.simulations.lessons``.
"""

from pathlib import Path
from typing import Annotated

import typer

from ..client.bundle import Bundle
from ..client.decoding.options import Options
from ..client.learning.learner import LearnerConfig
from ..client.prompts import read_prompts
from ..common.embedded import EMBEDDED
from ..common.files import write_atomic
from .bench.arguments import BundleOption
from .bench.table import run

PROGRAM = "python -m fleetdraft.simulations.lessons"
_PRIVATE = 0o600


def main(
    prompts: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="Prompts to write texts from.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the lessons, a file each.")],
    target: Annotated[str | None, typer.Option("--target", metavar="TARGET", help="As in fleetdraft generate.")] = None,
    bundle: BundleOption = EMBEDDED,
    count: Annotated[int, typer.Option("--count", min=1, help="Prompts, from the first on.")] = 8,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest text.")] = 48,
) -> None:
    """Writes a text from each prompt, and what it teaches.

    A lesson is its user's text in other numbers: it must not leave the device.

    Example:

      python -m fleetdraft.simulations.lessons prompts.jsonl lessons --target bpe1
    """
    opened = Bundle.open(bundle)
    pair, texts = opened.pair(target), read_prompts(prompts)[:count]
    learner = pair.learner(opened.adapter(), LearnerConfig(every_prompts=count + 1, replay_capacity=count), seed=0)
    for prompt in texts:  # too few for training, which would change what drafts
        learner.begin(pair.target_codec.prompt_tokens(prompt.text))
        pair.drafted.run(prompt.text, Options(max_new_tokens=max_new_tokens), learner)
        learner.end()
    out.mkdir(parents=True, exist_ok=True)
    for number, lesson in learner.lessons.items():
        write_atomic(out / f"{number:06}.safetensors", lesson.to_bytes(), _PRIVATE)
    print(f"{len(learner.lessons)} lessons are in {out}")


if __name__ == "__main__":
    raise SystemExit(run(main, PROGRAM))
