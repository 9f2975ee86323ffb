"""The decode contests: who takes part, and the rows of the table that come out."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...common.progress import Advance
from . import drafters, peer_drafter
from .material import PRECISIONS, Drafter, write_material
from .table import Row
from .worker import contest

PEER = "transformers, fp32"
CONTEXT, TOKENS = 64, 192


def step_rows(
    drafter: Drafter, precisions: Sequence[str], threads: int, laps: int, seed: int, done: Advance = lambda remark: None
) -> list[Row]:
    """Time and memory of a token in each precision: with an adapter, beside the same graph without, and the peer."""
    work = {"threads": threads, "context": CONTEXT, "count": TOKENS}
    with TemporaryDirectory() as scratch:
        folders = {name: write_material(drafter, PRECISIONS[name], Path(scratch, name)) for name in precisions}
        everybody: dict[str, Any] = {
            f"{name}{kind}": (drafters.steps, work | {"folder": str(folder), "rank": rank})
            for name, folder in folders.items()
            for kind, rank in (("", drafter.rank), (" bare", 0))
        }
        everybody[PEER] = (peer_drafter.steps, work | {"folder": str(folders[precisions[0]])})
        results = contest(everybody, laps, seed, done)
    ms = {name: result.seconds / TOKENS * 1e3 for name, result in results.items()}
    peer = results[PEER]
    rows = []
    for name in precisions:
        rank = f"{name}, LoRA r = {drafter.rank}"
        rows += [
            Row(name=f"{rank}: token", value=ms[name], unit="ms", peer="without LoRA", peer_value=ms[f"{name} bare"]),
            Row(name=f"{rank}: token", value=ms[name], unit="ms", peer=PEER, peer_value=ms[PEER]),
            Row(name=f"{rank}: peak memory", value=results[name].peak_mib, unit="MiB", peer=PEER,
                peer_value=peer.peak_mib),
        ]  # fmt: skip
    return rows


def many_rows(
    drafter: Drafter,
    precision: str,
    clients: int,
    threads: int,
    laps: int,
    seed: int,
    done: Advance = lambda remark: None,
) -> list[Row]:
    """Contexts with adapters of their own in one call, beside one at a time."""
    with TemporaryDirectory() as scratch:
        folder = write_material(drafter, PRECISIONS[precision], Path(scratch))
        work = {"folder": str(folder), "rank": drafter.rank, "threads": threads, "context": CONTEXT, "count": 4}
        work |= {"clients": clients}
        modes = {"one call": True, "one by one": False}
        entries = {name: (drafters.many, work | {"together": together}) for name, together in modes.items()}
        results = contest(entries, laps, seed, done)
    call, single = results["one call"], results["one by one"]
    title = f"{precision}: {clients} adapters, a token each"
    difference = max(abs(a.value / b.value - 1) for a, b in zip(call.laps, single.laps, strict=True))
    tokens = 4 * clients
    return [
        Row(name=title, value=tokens / call.seconds, unit="tokens/s", peer="one by one",
            peer_value=tokens / single.seconds),
        Row(name=f"{title}: difference of the last logits, summed", value=difference, unit="of the sum"),
    ]  # fmt: skip
