"""The training contests: who takes part, and the rows of the table that come out."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from ...common.progress import Advance
from . import peer_trainer, trainers
from .curriculum import Curriculum
from .material import PRECISIONS, Drafter, write_material
from .table import Row
from .worker import Result, Worker, contest

PEER = "transformers + peft"


def step_rows(
    drafter: Drafter,
    curriculum: Curriculum,
    precisions: Sequence[str],
    threads: int,
    laps: int,
    done: Advance = lambda remark: None,
) -> list[Row]:
    """Time and memory of one training step, in each precision, beside the peer on the first one's weights."""
    with TemporaryDirectory() as scratch:
        folders = {name: write_material(drafter, PRECISIONS[name], Path(scratch, name)) for name in precisions}
        everybody: dict[str, Any] = {
            name: (trainers.steps, _ours(drafter, folder, curriculum, threads, 1)) for name, folder in folders.items()
        }
        everybody[PEER] = (peer_trainer.steps, _peers(folders[precisions[0]], curriculum, threads, 1))
        results = contest(everybody, laps, curriculum.seed, done)
    peer = results.pop(PEER)
    return [row for name, result in results.items() for row in _step_rows(name, result, peer)]


def loss_rows(
    drafter: Drafter,
    curriculum: Curriculum,
    precisions: Sequence[str],
    threads: int,
    steps: int,
    done: Advance = lambda remark: None,
) -> list[Row]:
    """Mean loss of the first and the last tenth of a run from the same start, the peer's on the dequantised weights.

    The losses at the start say whether the two at the end agree because both learned, or because neither did.
    """
    rows = []
    for name in precisions:
        with TemporaryDirectory() as scratch:
            folder = write_material(drafter, PRECISIONS[name], Path(scratch))
            ours = (trainers.steps, _ours(drafter, folder, curriculum, threads, 1))
            peer = (peer_trainer.steps, _peers(folder, curriculum, threads, 1))
            with Worker(*ours) as worker, Worker(*peer) as other:
                found, expected = (_ends([w.lap().value for _ in range(steps)]) for w in (worker, other))
        done(name)
        rows += [
            Row(name=f"{name}: loss at the {end} of {steps} steps", value=found[end], unit="nats", peer=PEER,
                peer_value=expected[end])
            for end in ("start", "end")
        ]  # fmt: skip
    return rows


def many_rows(
    drafter: Drafter, curriculum: Curriculum, threads: int, clients: int, laps: int, done: Advance = lambda remark: None
) -> list[Row]:
    """Many adapters in one call beside one at a time, on the int4 base."""
    with TemporaryDirectory() as scratch:
        folder = write_material(drafter, PRECISIONS["int4"], Path(scratch))
        arguments = _ours(drafter, folder, curriculum, threads, clients)
        arguments = {"clients": arguments.pop("count")} | arguments
        modes = {"one call": True, "one by one": False}
        entries = {name: (trainers.many, arguments | {"together": together}) for name, together in modes.items()}
        results = contest(entries, laps, curriculum.seed, done)
    call, single = results["one call"], results["one by one"]
    title = f"int4: {clients} adapters, a step each of {curriculum.texts} x {curriculum.length} tokens"
    difference = max(abs(a.value / b.value - 1) for a, b in zip(call.laps, single.laps, strict=True))
    return [
        Row(name=title, value=clients / call.seconds, unit="steps/s", peer="one by one",
            peer_value=clients / single.seconds),
        Row(name=f"{title}: peak memory", value=call.peak_mib, unit="MiB", peer="one by one",
            peer_value=single.peak_mib),
        Row(name=f"{title}: largest difference of the losses", value=difference, unit="of the loss"),
    ]  # fmt: skip


def _ends(losses: Sequence[float]) -> dict[str, float]:
    tenth = max(1, len(losses) // 10)
    return {"start": mean(losses[:tenth]), "end": mean(losses[-tenth:])}


def _ours(drafter: Drafter, folder: Path, curriculum: Curriculum, threads: int, count: int) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "rank": drafter.rank,
        "alpha": drafter.alpha,
        "threads": threads,
        "count": count,
        "curriculum": asdict(curriculum),
    }


def _peers(folder: Path, curriculum: Curriculum, threads: int, count: int) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "threads": threads,
        "count": count,
        "curriculum": asdict(curriculum),
        "objective": asdict(trainers.OBJECTIVE),
        "learning_rate": trainers.OPTIMIZER.learning_rate,
        "max_grad_norm": trainers.OPTIMIZER.max_grad_norm,
    }


def _step_rows(name: str, result: Result, peer: Result) -> list[Row]:
    return [
        Row(name=f"{name}: training step", value=result.seconds * 1e3, unit="ms", peer=PEER,
            peer_value=peer.seconds * 1e3),
        Row(name=f"{name}: peak memory", value=result.peak_mib, unit="MiB", peer=PEER,
            peer_value=peer.peak_mib),
    ]  # fmt: skip
