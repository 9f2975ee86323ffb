"""``fleetdraft adapter``: shows, imports and exports LoRA adapters. The base install is enough."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.bundle import BundleManifest, check_outside
from ..common.embedded import EMBEDDED, located
from ..common.errors import ConfigError, UserError
from ..common.files import check_replaceable
from ..common.lora import ABOUT, LoraAdapter
from ..common.peft_format import PeftAdapter, read_object
from ..common.weights import Weights
from .adapters import Found, find_adapter, fit, judge_base
from .base_match import drafter_weights, matching_weights
from .merged import STORAGE, write_merged
from .onnx_adapter import OnnxAdapterFile, write_onnx_adapter

adapter = typer.Typer(help="Show, import or export a LoRA adapter.", no_args_is_help=True)

_Path = Annotated[Path, typer.Argument(metavar="ADAPTER")]
_Bundle = Annotated[
    Path, typer.Option("--bundle", metavar="BUNDLE", help="Bundle directory; 'embedded' is the one shipped inside.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@adapter.command()
def show(path: _Path, as_json: _Json = False) -> None:
    """Shows rank, scaling, modules and fingerprints.

    ADAPTER is a PEFT directory or an .onnx_adapter file.

    Example:

      fleetdraft adapter show my-adapter
    """
    _tell(_onnx_json(path) if path.is_file() else _peft_json(path), as_json)


@adapter.command("import")
def import_adapter(
    path: _Path,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The adapter to write; an older one is replaced.")],
    bundle: _Bundle = EMBEDDED,
    base: Annotated[
        Path | None,
        typer.Option("--base", metavar="DIR", help="The model the adapter was trained on, to compare its weights."),
    ] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut a rank above the bundle's; the error is told.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Makes an adapter fit a bundle.

    ADAPTER is a PEFT directory of any rank and alpha, rsLoRA too, that changes all or some projections; or an
    .onnx_adapter file of the same bundle.

    Examples:

      fleetdraft adapter import peft-dir --bundle B --base models/drafter --out my-adapter

      fleetdraft adapter import wide-peft-dir --bundle B --out my-adapter --truncate --json
    """
    _check_output(out, path)
    bundle = located(bundle)
    manifest = BundleManifest.read(bundle)
    check_outside(out, bundle)
    found = find_adapter(path, manifest)
    fitted = fit(found.changes, manifest.layout, truncate)
    verdict = judge_base(found, bundle, manifest, base)
    about = {
        "base_check": verdict,
        "base_model": found.base_model,
        "truncated_projections": fitted.truncated,
        "relative_error": fitted.loss,
    }
    fitted.adapter.save(out, manifest.base, {"imported": about})
    report = {"adapter": str(out), "digest": fitted.adapter.digest, "projections": len(found.changes), **about}
    _tell(report, as_json, _warning(found) if verdict == "unverified" else "")


@dataclass(frozen=True, kw_only=True)
class _Export:
    """What is written where. original: the base's directory as its user named it, and ``weights`` are its."""

    out: Path
    adapter: LoraAdapter
    bundle: Path
    manifest: BundleManifest
    original: Path | None
    weights: Weights | None
    dtype: str


@adapter.command()
def export(
    source: Annotated[Path, typer.Option("--adapter", metavar="DIR", help="An adapter of the bundle.")],
    format: Annotated[str, typer.Option("--format", metavar="peft|onnx|merged", help="What to write.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="PATH", help="Directory, or file for onnx; an older export is replaced.")
    ],
    bundle: _Bundle = EMBEDDED,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="DIR",
            help="The drafter's original model, compared with the bundle's: merged into, or named as base by peft.",
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="|".join(STORAGE), help="How 'merged' stores weights.")
    ] = "fp32",
    as_json: _Json = False,
) -> None:
    """Writes an adapter in a format of others.

    That is a PEFT directory, an .onnx_adapter file, or a Hugging Face model with the adapter merged into its weights.

    Examples:

      fleetdraft adapter export --bundle B --adapter my-adapter --format merged --base models/drafter --out model

      fleetdraft adapter export --bundle B --adapter my-adapter --format onnx --out my.onnx_adapter
    """
    for option, value, known in (("--format", format, _WRITERS), ("--dtype", dtype, STORAGE)):
        if value not in known:
            raise ConfigError(f"{option} is {value!r}, expected one of {', '.join(known)}")
    if format == "onnx" and base is not None:
        raise ConfigError("--base is given with --format onnx, which does not use it")
    _check_distinct(out, source)
    bundle = located(bundle)
    manifest = BundleManifest.read(bundle)
    check_outside(out, bundle)
    job = _Export(
        out=out,
        adapter=LoraAdapter.load(source, manifest.layout, manifest.base),
        bundle=bundle,
        manifest=manifest,
        original=base,
        weights=matching_weights(base, bundle, manifest) if base is not None else None,
        dtype=dtype,
    )
    _WRITERS[format](job)
    _tell({"written": str(out), "format": format, "digest": job.adapter.digest, "base": manifest.base}, as_json)


def _write_peft(job: _Export) -> None:
    check_replaceable(job.out, ABOUT)
    job.adapter.save(job.out, job.manifest.base, base_model=str(job.original or ""))


def _write_onnx(job: _Export) -> None:
    write_onnx_adapter(job.out, job.adapter, job.manifest.base)


def _write_merged(job: _Export) -> None:
    weights = job.weights or drafter_weights(job.bundle, job.manifest)
    source = job.original or job.bundle / "drafter"
    merged_into = "original" if job.original else "bundle"
    about = {"adapter": job.adapter.digest, "base": job.manifest.base, "merged_into": merged_into}
    write_merged(job.out, job.adapter.merged(weights), source, job.dtype, about)


_WRITERS = {"peft": _write_peft, "onnx": _write_onnx, "merged": _write_merged}


def _check_output(out: Path, source: Path) -> None:
    check_replaceable(out, ABOUT)  # an adapter of PEFT's own is somebody's work, not an older output
    _check_distinct(out, source)


def _check_distinct(out: Path, source: Path) -> None:
    if out.resolve() == source.resolve():
        raise UserError(f"--out {out} is the adapter that is read; choose another place")


def _warning(found: Found) -> str:
    said = f"it says '{found.base_model}'" if found.base_model else "it does not say which"
    return (
        f"the base cannot be verified: the adapter has no fingerprint of the model it was trained on ({said}); only "
        "sizes were compared. With --base DIR, its weights are compared too"
    )


def _peft_json(path: Path) -> dict[str, Any]:
    found = PeftAdapter.read(path)
    changes = found.changes.values()
    about = read_object(path / ABOUT) if (path / ABOUT).is_file() else {}
    return {
        "format": "peft",
        "ranks": sorted({change.rank for change in changes}),
        "scalings": sorted({change.scaling for change in changes}),
        "rslora": found.config.rslora,
        "projections": sorted({name for _, name in found.changes}),
        "layers": sorted({layer for layer, _ in found.changes}),
        "parameters": sum(change.a.size + change.b.size for change in changes),
        "base_model": found.config.base_model,
    } | {key: about[key] for key in ("base", "layout", "digest", "lineage", "imported") if key in about}


def _onnx_json(path: Path) -> dict[str, Any]:
    file = OnnxAdapterFile.read(path)
    return {
        "format": "onnx",
        "format_version": file.format_version,
        "model_version": file.model_version,
        "adapter_version": file.adapter_version,
        "tensors": {name: list(size) for name, size in file.sizes.items()},
    }


def _tell(value: dict[str, Any], as_json: bool, warning: str = "") -> None:
    if as_json:
        print(json.dumps({"schema": 1} | value | ({"warning": warning} if warning else {})))
        return
    width = max(map(len, value))
    for key, field in value.items():
        if field != "":
            print(f"{key:<{width}}  {field if isinstance(field, str) else json.dumps(field)}")
    if warning:
        print(f"warning: {warning}")
