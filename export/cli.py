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

bundle = typer.Typer(
    help="Build a drafter's bundle for one or more targets, or check one.",
    epilog="Example: fleetdraft bundle build --drafter models/drafter --target models/target --out my-bundle",
    no_args_is_help=True,
)

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


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
    """Builds a bundle for a drafter and its targets.

    It has the drafter's weights, its decode and train graphs, and each target's decode graph; --json names every file
    with its digest.

    Example:

      fleetdraft bundle build --drafter models/drafter --target models/target --out my-bundle
    """
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
        print(_summary(out, manifest))


@bundle.command()
def check(
    directory: Annotated[Path, typer.Argument(metavar="BUNDLE", show_default=False)],
    as_json: _Json = False,
) -> None:
    """Checks a bundle's files and graphs.

    Every file by digest, every graph by value and gradient against torch.

    Example:

      fleetdraft bundle check my-bundle
    """
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


def _summary(out: Path, manifest: BundleManifest) -> str:
    """What was built, in a line."""
    targets = ", ".join(target.name for target in manifest.targets)
    megabytes = sum(_sizes(out, manifest).values()) / 1e6
    rank = f"LoRA rank {manifest.rank}"
    return f"{out}: drafter in {manifest.precision}, {rank}, with targets {targets}; {megabytes:.1f} MB"
