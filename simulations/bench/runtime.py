"""What a device's work costs in our engine and in transformers on torch: the same shapes, threads and work in one run.

Run it as ``python -m fleetdraft.simulations.bench.runtime``.
"""

from pathlib import Path
from typing import Annotated

import typer

from ...common.embedded import EMBEDDED, located
from ...common.files import check_file
from ...common.progress import progress
from ...common.shape import DecoderShape
from ...common.weights import read_weights
from . import drafting, training
from .arguments import JsonOption
from .curriculum import Curriculum
from .material import LLAMA_68M, PRECISIONS, Drafter, random_drafter
from .table import Row, print_rows, run, write_rows

PROGRAM = "python -m fleetdraft.simulations.bench.runtime"


def main(
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="DIR", help="Trained drafter of the loss runs (default: the embedded one)."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of everybody.")] = 2,
    laps: Annotated[int, typer.Option("--laps", min=1, help="Repetitions that count.")] = 9,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of the loss runs.")] = 200,
    clients: Annotated[int, typer.Option("--clients", min=1, help="Adapters in one call.")] = 32,
    seed: Annotated[int, typer.Option("--seed", help="Seed of every random choice.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A small shape, few laps and steps.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Measures decoding and training beside transformers and peft."""
    check_file(json_file)
    if quick:
        laps, steps, clients = min(laps, 2), min(steps, 5), min(clients, 3)
    trained = _trained(model)
    sample = random_drafter(trained.shape if quick else LLAMA_68M, seed)
    precisions = ["int4"] if quick else list(PRECISIONS)
    rows = _decoding(sample, precisions, threads, laps, clients, seed)
    rows += _training(sample, trained, precisions, threads, laps, steps, clients, seed)
    if json_file is not None:
        write_rows(json_file, rows)


def _decoding(sample: Drafter, precisions: list[str], threads: int, laps: int, clients: int, seed: int) -> list[Row]:
    """The decode contests, printed one after the other."""
    with progress("decode step", (laps + 1) * (2 * len(precisions) + 1)) as done:
        rows = drafting.step_rows(sample, precisions, threads, laps, seed, done)
    print_rows(f"Decoding, {_named(sample)}, behind {drafting.CONTEXT} tokens, {threads} threads", rows)
    with progress("many adapters", (laps + 1) * 2 * len(precisions)) as done:
        many = [drafting.many_rows(sample, name, clients, threads, laps, seed, done) for name in precisions]
    more = [row for found in many for row in found]
    print_rows(f"Decoding with many adapters, {_named(sample)}, {threads} threads", more)
    return [*rows, *more]


def _training(
    sample: Drafter,
    trained: Drafter,
    precisions: list[str],
    threads: int,
    laps: int,
    steps: int,
    clients: int,
    seed: int,
) -> list[Row]:
    """The training contests, printed one after the other."""
    batch = Curriculum(vocabulary=sample.shape.vocab_size, texts=8, length=128, width=32, seed=seed)
    short = Curriculum(vocabulary=sample.shape.vocab_size, texts=1, length=16, width=32, seed=seed)
    lessons = Curriculum(vocabulary=trained.shape.vocab_size, texts=8, length=32, width=32, seed=seed)
    with progress("training step", (laps + 1) * (len(precisions) + 1)) as done:
        rows = training.step_rows(sample, batch, precisions, threads, laps, done)
    print_rows(f"Training, {_named(sample)}, 8 x 128 tokens, top-32 teacher rows, {threads} threads", rows)
    with progress("many adapters", (laps + 1) * 2) as done:
        more = training.many_rows(sample, short, threads, clients, laps, done)
    print_rows(f"Training many adapters, {_named(sample)}, {threads} threads", more)
    with progress("loss", len(precisions)) as done:
        losses = training.loss_rows(trained, lessons, precisions, threads, steps, done)
    print_rows(f"Loss, {_named(trained)}, 8 x 32 tokens", losses)
    return [*rows, *more, *losses]


def _trained(model: Path | None) -> Drafter:
    directory = located(EMBEDDED) / "drafter" if model is None else model
    shape = DecoderShape.from_directory(directory)
    return Drafter(shape=shape, weights=read_weights(directory, shape))


def _named(drafter: Drafter) -> str:
    shape = drafter.shape
    millions = sum(weight.size for weight in drafter.weights.values()) / 1e6
    return f"{millions:.1f} M parameters (hidden {shape.hidden_size}, vocabulary {shape.vocab_size})"


if __name__ == "__main__":
    raise SystemExit(run(main, PROGRAM))
