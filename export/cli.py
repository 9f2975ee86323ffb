"""``fleetdraft bundle``: builds and checks bundles. Running a command imports torch and ONNX; asking for help not."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..common.bundle import BundleManifest
from ..common.progress import progress

if TYPE_CHECKING:
    from .parity import Parity

bundle = typer.Typer(help="Build a drafter's bundle for one or more targets, or check one.", no_args_is_help=True)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")]


@bundle.command()
def build(
    drafter: Annotated[Path, typer.Option(help="Hugging Face directory of the drafter.", show_default=False)],
    target: Annotated[
        list[Path], typer.Option(help="Hugging Face directory of a target; repeat for more.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The bundle to write; an older bundle is replaced.", show_default=False)],
    precision: Annotated[
        str, typer.Option(help="Storage of the drafter's weights: fp32, fp16, or int8, int4, which draft in integers.")
    ] = "fp32",
    rank: Annotated[int, typer.Option(help="LoRA rank of the adapters.")] = 8,
    alpha: Annotated[float | None, typer.Option(help="LoRA alpha; twice the rank by default.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial adapter.")] = 0,
    include_targets: Annotated[bool, typer.Option("--include-targets", help="Copy the targets' weights too.")] = False,
    as_json: _Json = False,
) -> None:
    """Build a bundle: the drafter's weights, decode and train graphs, and each target's decode graph."""
    from .bundle import BundleRecipe, build_bundle

    recipe = BundleRecipe(
        precision=precision,
        rank=rank,
        alpha=2.0 * rank if alpha is None else alpha,
        seed=seed,
        include_targets=include_targets,
    )
    with progress("building", total=3 + len(target)) as done:
        manifest = build_bundle(drafter, target, out, recipe, done)
    if as_json:
        print(json.dumps({"bundle": str(out), **manifest.to_json(), "size_bytes": _sizes(out, manifest)}))
    else:
        Console().print(_file_table(out, manifest), _fingerprint_table(manifest))


@bundle.command()
def check(
    directory: Annotated[Path, typer.Argument(metavar="BUNDLE", show_default=False)],
    as_json: _Json = False,
) -> None:
    """Check a bundle: every file by digest, every graph by value and gradient against torch."""
    from .parity import check_bundle

    with progress("checking", total=3 + len(BundleManifest.read(directory).targets)) as done:
        parity = check_bundle(directory, done=done)
    if as_json:
        print(json.dumps({"schema": 1, "bundle": str(directory), "ok": True, **parity.to_json()}))
        return
    Console().print(_parity_table(directory, parity))


def _parity_table(directory: Path, parity: "Parity") -> Table:
    table = Table("checked against torch", "largest relative difference", title=f"{directory} is sound")
    table.add_row("drafter: logits with a random adapter", f"{parity.logits:.1e}")
    table.add_row("drafter: training loss and gradients", f"{parity.gradients:.1e}")
    for name, error in parity.targets.items():
        table.add_row(f"target {name}: logits", "not compared (weights elsewhere)" if error is None else f"{error:.1e}")
    return table


def _sizes(out: Path, manifest: BundleManifest) -> dict[str, int]:
    return {name: (out / name).stat().st_size for name in manifest.files}


def _file_table(out: Path, manifest: BundleManifest) -> Table:
    table = Table("file", "bytes", "sha256", title=str(out))
    for name, size in _sizes(out, manifest).items():
        table.add_row(name, f"{size:,}", manifest.files[name][:12])
    return table


def _fingerprint_table(manifest: BundleManifest) -> Table:
    table = Table("model", "family", "fingerprint", "weights")
    table.add_row("drafter", "", manifest.base[:12], f"{manifest.precision}, LoRA rank {manifest.rank}")
    for target in manifest.targets:
        place = "in the bundle" if target.self_contained else "in the directory given to --target"
        table.add_row(target.name, target.family, target.fingerprint[:12], place)
    return table
