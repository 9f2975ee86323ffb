"""The command line: `python -m fleetdraft.simulations.embed {corpus,tokenizers,train,prompts,all,ship} --work DIR`."""

from __future__ import annotations

import dataclasses
import json
import platform
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from ...common.errors import UserError
from ...common.files import write_json
from ...export.align.allocator import keep_freed_memory
from ...export.align.errors import Stopped
from ...export.align.training import Report
from .corpus import NOBODY, USERS, Corpus, load_corpus
from .prompts import write_prompts
from .run import Run, execute, train_tokenizers
from .shapes import MODELS, ModelName
from .ship import ship

ABOUT = "Train Fleetdraft's embedded default models from the running Python's own standard library."

app = typer.Typer(no_args_is_help=True, add_completion=False, help=ABOUT)
console = Console(soft_wrap=True, highlight=False)

Work = Annotated[Path, typer.Option(help="The folder that everything is written to.")]
Seed = Annotated[int, typer.Option(help="Decides the weights, the order of the text and the choice of prompts.")]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps, instead of the model's own number.", min=1)]
Threads = Annotated[int, typer.Option(help="CPU threads per run.", min=1)]


@app.command()
def corpus(work: Work) -> None:
    """Write corpus.json: the digest, who owns how much text, and which files are held out."""
    _write_corpus(load_corpus(), work)


@app.command()
def tokenizers(work: Work) -> None:
    """Train the three tokenizers into tokenizers/ (seconds)."""
    train_tokenizers(load_corpus(), work)
    console.print(f"tokenizers: {work / 'tokenizers'}")


@app.command()
def prompts(work: Work, seed: Seed = 0) -> None:
    """Write every user's training and held-out prompts into prompts/ (seconds)."""
    size_bytes = write_prompts(load_corpus(), work / "prompts", seed)
    console.print(f"prompts: {size_bytes} bytes in {work / 'prompts'}")


@app.command()
def train(
    work: Work,
    model: Annotated[ModelName, typer.Option(help="Which of the four models.")],
    seed: Seed = 0,
    steps: Steps = None,
    threads: Threads = 1,
) -> None:
    """Train one model, or go on with an interrupted run of it. Ctrl-C saves and stops."""
    _train(load_corpus(), work, model, seed, steps, threads)


@app.command(name="all")
def everything(work: Work, seed: Seed = 0, steps: Steps = None, threads: Threads = 1) -> None:
    """Do all of it, one model after another (three quarters of an hour on one idle core)."""
    loaded = load_corpus()
    _write_corpus(loaded, work)
    write_prompts(loaded, work / "prompts", seed)
    train_tokenizers(loaded, work)
    for model in MODELS:
        _train(loaded, work, model, seed, steps, threads)


@app.command(name="ship")
def ship_bundle(
    work: Work, out: Annotated[Path, typer.Option(help="The bundle; replaced.")] = Path("client/embedded")
) -> None:
    """Write the embedded bundle from the trained models: graphs, small storage, prompts, MANIFEST.json."""
    size_bytes = ship(work, out)
    console.print(f"bundle: {size_bytes / 1e6:.1f} MB in {out}")


def main() -> int:
    """Runs the command line with the exit codes of `fleetdraft`; an expected error is one line, not a traceback."""
    try:
        app()
    except Stopped as error:
        return _complain(error, 130)
    except UserError as error:
        return _complain(error, 2)
    return 0


def _complain(error: Exception, code: int) -> int:
    Console(stderr=True, soft_wrap=True).print(str(error), style="red", markup=False)
    return code


def _train(corpus: Corpus, work: Path, model: ModelName, seed: int, steps: int | None, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    plan = MODELS[model] if steps is None else MODELS[model].shortened(steps)
    run = Run(model=model, plan=plan, corpus=corpus, work=work, seed=seed)
    record = execute(run, lambda layers, report: _say(model, layers, report))
    console.print_json(json.dumps(dataclasses.asdict(record)))


def _say(model: str, layers: int, report: Report) -> None:
    minutes, seconds = divmod(round(report.remaining_s), 60)
    console.print(
        f"{model}  {layers} layers  step {report.step}/{report.steps}  loss {report.loss:.3f}  "
        f"validation {report.validation:.3f}  rate {report.rate:.2e}  {report.steps_per_s:.2f} steps/s  "
        f"{minutes}:{seconds:02} left"
    )


def _write_corpus(corpus: Corpus, work: Path) -> None:
    owners = {owner or "general": _part(corpus, owner) for owner in (NOBODY, *USERS)}
    summary = {"sha256": corpus.digest, "python": platform.python_version(), "owners": owners}
    write_json(work / "corpus.json", summary)
    console.print(f"corpus: {corpus.digest} in {work / 'corpus.json'}")


def _part(corpus: Corpus, owner: str) -> dict[str, object]:
    training = corpus.of_user(owner, held_out=False)
    held_out = corpus.held_out([owner])
    return {
        "training_bytes": sum(d.size_bytes for d in training),
        "held_out_bytes": sum(d.size_bytes for d in held_out),
        "held_out_files": [d.path for d in held_out],
    }


if __name__ == "__main__":
    raise SystemExit(main())
