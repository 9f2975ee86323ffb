"""What --bundle, --target and --adapter name, opened for a command. It runs nothing."""

from dataclasses import dataclass
from pathlib import Path

from ...common.lora import LoraAdapter
from ..bundle import Bundle
from ..pair import Pair
from ..spelling.tokenizer_pair import path_kind


@dataclass(frozen=True, kw_only=True)
class Opened:
    """adapter: in force."""

    bundle: Bundle
    pair: Pair
    adapter: LoraAdapter


def open_pair(
    path: Path,
    target: str | None,
    threads: int,
    adapter: Path | None,
    paths: str = "full",
    runtime: str | None = None,
) -> Opened:
    """Opens bundle and target and puts the adapter (the bundle's initial one by default) in force."""
    bundle = Bundle.open(path)
    pair = bundle.pair(target, threads, path_kind(paths), runtime=runtime)
    in_force = bundle.adapter(adapter)
    pair.adapt(in_force)
    return Opened(bundle=bundle, pair=pair, adapter=in_force)
