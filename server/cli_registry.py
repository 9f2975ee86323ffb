"""``fleetdraft registry``: shows an operator the releases of a run, and lets one promote, go back and export."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..common.errors import UserError
from ..common.files import check_replaceable
from ..common.lora import ABOUT
from .registry import decisions, told, verification
from .registry.catalogue import Catalogue
from .registry.difference import Norms, by_layer, by_module, norms
from .registry.export import export as write_export
from .registry.lineage import number_of

#: Columns that give way on a narrow terminal.
_FOLDED = ("status", "why", "reason")

registry = typer.Typer(help="Show, promote, roll back, verify or export the releases of a run.", no_args_is_help=True)

_Root = Annotated[Path, typer.Argument(metavar="REGISTRY", help="Directory of the registry.", show_default=False)]
_Which = Annotated[
    str, typer.Argument(metavar="N", help="Number of a release, or 'head' or 'promoted'.", show_default=False)
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
_Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Kept with the decision.")]


@registry.command("list")
def list_releases(
    root: _Root,
    last: Annotated[int, typer.Option("--last", metavar="K", min=0, help="Only the newest K; 0 for all.")] = 0,
    as_json: _Json = False,
) -> None:
    """Lists the releases, the oldest first.

    In and out are the devices whose updates count and those that were left out. The columns of target families are
    acceptance rates as devices measured them on held-out prompts; a release that nobody measured has none.

    Examples:

      fleetdraft registry list my-run/registry

      fleetdraft registry list my-run/registry --last 10 --json
    """
    lines = told.releases(_opened(root))[-last:]
    if as_json:
        _print_json(root, releases=lines)
        return
    families = sorted({family for line in lines for family in line.get("acceptance", {})})
    private = any(line.get("epsilon") is not None for line in lines)
    headings = ("N", "date", "round", "rule", "in", "out", *(["ε"] if private else []))
    headings += (*(family.replace("-", "-\n") for family in families), "status")
    _print_table("", headings, (_row(line, families, private) for line in lines))
    for line in lines:
        for name in ("blocked", "error"):
            if name in line:
                _print(f"release {line['number']}: {'damaged' if name == 'error' else name}: {line[name]}")


@registry.command()
def show(root: _Root, which: _Which, as_json: _Json = False) -> None:
    """Shows where a release comes from, what was measured with it, and what became of it.

    Length is the mean number of tokens per call of the target; training is the acceptance while devices trained.

    Examples:

      fleetdraft registry show my-run/registry 7

      fleetdraft registry show my-run/registry promoted --json
    """
    catalogue = _opened(root)
    found = told.release(catalogue, _name(catalogue, which))
    if as_json:
        _print_json(root, **found)
        return
    parent = "none" if found["parent"] is None else f"{found['parent']} ({found['parent_digest'][:12]}…)"
    privacy = "none" if found["epsilon"] is None else f"ε {found['epsilon']:.4g}{_delta(found['privacy'])}"
    _print(
        f"release {found['number']}: {', '.join(found['status']) or 'neither head nor promoted'}\n"
        f"made         {_date(found['created_s'])}, round {found['round']}, rule {found['rule']}\n"
        f"digest       {found['digest']}\n"
        f"parent       {parent}\n"
        f"devices      {found['accepted']} accepted, {found['left_out']} left out\n"
        f"privacy      {privacy}"
    )
    if found["rejected"]:
        _print_table("left out", ("devices", "reason"), ((str(n), why) for why, n in found["rejected"].items()))
    reference = "promoted" if found["compared_with"] is None else f"release {found['compared_with']}"
    headings = ("family", "acceptance", reference, "difference", "length", "proposals", "training")
    _print_table("acceptance", headings, (_family_row(name, each) for name, each in found["families"].items()))
    events = ((_date(e["at_s"]), e["kind"], e["reason"]) for e in found["events"])
    _print_table("what became of it", ("date", "what", "why"), events)


@registry.command()
def diff(
    root: _Root,
    first: Annotated[str, typer.Argument(metavar="A", help="Number, 'head' or 'promoted'.", show_default=False)],
    second: Annotated[str, typer.Argument(metavar="B", help="Likewise.", show_default=False)],
    as_json: _Json = False,
) -> None:
    """Shows how far release B is from A: in the drafter's weights, and in acceptance.

    Norms are Frobenius norms of what the adapters add to the weights; relative means in units of what A adds.

    Examples:

      fleetdraft registry diff my-run/registry 3 4

      fleetdraft registry diff my-run/registry promoted head --json
    """
    catalogue = _opened(root)
    names = [_name(catalogue, which) for which in (first, second)]
    adapters = [catalogue.directories.adapter(catalogue.directories.lineage(name)).changes for name in names]
    found = norms(*adapters)
    tables: dict[str, dict[str, Norms]] = {
        "total": {"all": Norms.over(list(found.values()))},
        "layers": {str(layer): each for layer, each in by_layer(found).items()},
        "modules": by_module(found),
    }
    rates = told.rates(catalogue, *names)
    if as_json:
        plain = {kind: {name: _norms_json(each) for name, each in table.items()} for kind, table in tables.items()}
        _print_json(root, first=number_of(names[0]), second=number_of(names[1]), **plain, acceptance=rates)
        return
    headings = (f"release {number_of(names[0])}", f"release {number_of(names[1])}", "difference", "relative")
    for kind, table in tables.items():
        _print_table("", (kind, *headings), (_norms_row(name, each) for name, each in table.items()))
    rows = ((name, *(_rate(each[key]) for key in ("first", "second")), _signed(each["difference"]))
            for name, each in rates.items())  # fmt: skip
    _print_table("", ("acceptance", *headings[:3]), rows)


@registry.command()
def promote(
    root: _Root,
    which: _Which,
    force: Annotated[bool, typer.Option("--force", help="A blocked release, too; asks for a reason.")] = False,
    reason: _Reason = "",
    as_json: _Json = False,
) -> None:
    """Puts a release in force.

    The head stays where it is; later releases are compared with this one. The run must not be at work.

    Examples:

      fleetdraft registry promote my-run/registry 7

      fleetdraft registry promote my-run/registry 8 --force --reason "the fall is of a retired target"
    """
    catalogue = _opened(root)
    name = _name(catalogue, which)
    try:
        changed = decisions.promote(catalogue, name, reason, force)
    finally:
        catalogue.close()
    _tell_decision(root, "promoted", name, changed, as_json)


@registry.command()
def rollback(
    root: _Root,
    to: Annotated[
        str | None, typer.Option("--to", metavar="N", help="By default the one that was in force before.")
    ] = None,
    reason: _Reason = "",
    as_json: _Json = False,
) -> None:
    """Puts an earlier release in force and lets the next round start from it.

    Nothing is deleted: --to takes later releases as well, and so undoes a rollback. The run must not be at work.

    Examples:

      fleetdraft registry rollback my-run/registry --reason "complaints from the field"

      fleetdraft registry rollback my-run/registry --to 5
    """
    catalogue = _opened(root)
    try:
        name, changed = decisions.roll_back(catalogue, reason, None if to is None else _name(catalogue, to))
    finally:
        catalogue.close()
    _tell_decision(root, "promoted and the head", name, changed, as_json)


@registry.command()
def verify(
    root: _Root,
    everything: Annotated[bool, typer.Option("--all", help="Read the content of every release.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make a lost or damaged index anew, and say what is lost.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Checks digests, lineage, and index against directories; exit code 1 where something is damaged.

    Without --all the content of the head and of the promoted release is read, and of the others where they come from.
    Nothing is deleted, by --repair neither: a damaged index stays under another name.

    Examples:

      fleetdraft registry verify my-run/registry --all

      fleetdraft registry verify my-run/registry --repair
    """
    catalogue = _opened(root)
    repaired = verification.repair(catalogue) if repair else []
    found = list(verification.verify(catalogue, everything))
    damaged = any(finding.damage for finding in found)
    if as_json:
        plain = [{"what": finding.what, "damage": finding.damage} for finding in found]
        _print_json(root, sound=not damaged, findings=plain, repaired=repaired)
    else:
        for line in repaired:
            _print(f"repair: {line}")
        for finding in found:
            _print(f"{'damage' if finding.damage else 'note'}: {finding.what}")
        if not damaged:
            read = "every release" if everything else "head, promoted release and lineage"
            _print(f"{root} is sound: {read} read")
    if damaged:
        raise typer.Exit(1)


@registry.command()
def export(
    root: _Root,
    which: _Which,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The PEFT directory; an older one is replaced.")],
    base: Annotated[
        str, typer.Option("--base", metavar="NAME", help="Name or path of the drafter's model, for PEFT.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="A blocked release, too.")] = False,
    as_json: _Json = False,
) -> None:
    """Writes a release as a PEFT directory, without the names of devices.

    transformers with peft loads it, and so does --adapter of fleetdraft's commands.

    Examples:

      fleetdraft registry export my-run/registry promoted --out adapter

      fleetdraft registry export my-run/registry 7 --out adapter --base models/drafter
    """
    catalogue = _opened(root)
    name = _name(catalogue, which)
    blocked = catalogue.standing().blocked.get(name)
    if blocked is not None and not force:
        raise UserError(f"release {number_of(name)} is blocked: {blocked}; to export it all the same give --force")
    check_replaceable(out, ABOUT)
    write_export(catalogue, name, out, base)
    if as_json:
        _print_json(root, release=number_of(name), out=str(out), digest=catalogue.directories.lineage(name).digest)
    else:
        _print(f"release {number_of(name)} is in {out}")


# --- inside -----------------------------------------------------------------------------------------------------------


def _opened(root: Path) -> Catalogue:
    """A registry that has a release.

    Raises:
      UserError: there is none.
    """
    catalogue = Catalogue(root)
    if catalogue.is_empty:
        inside = root / "registry"
        hint = f"did you mean {inside}?" if not Catalogue(inside).is_empty else "give the registry of a run"
        raise UserError(f"{root} is no registry: there is no release in it; {hint}")
    return catalogue


def _name(catalogue: Catalogue, which: str) -> str:
    """The release of a number, or of a word.

    Raises:
      UserError: there is none.
    """
    if which.isascii() and which.isdigit():
        return catalogue.find(int(which))
    now = catalogue.standing()
    words = {"head": now.head, "promoted": now.promoted}
    if which not in words:
        raise UserError(f"release is {which!r}, expected a number, 'head' or 'promoted'")
    if (name := words[which]) is None:
        raise UserError(f"no release of {catalogue.root} is {which} yet; give a number")
    return name


def _tell_decision(root: Path, what: str, name: str, changed: bool, as_json: bool) -> None:
    if as_json:
        _print_json(root, release=number_of(name), changed=changed)
    else:
        _print(f"release {number_of(name)} is {'now' if changed else 'already'} {what}")


def _print_json(root: Path, **values: Any) -> None:
    print(json.dumps({"schema": 1, "registry": str(root), **values}))


def _print(text: str) -> None:
    Console(markup=False, highlight=False).print(text, soft_wrap=True)


def _print_table(title: str, headings: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading not in _FOLDED)
    for row in rows:
        table.add_row(*map(_shown, row))
    console = Console(markup=False, highlight=False)
    if table.rows:
        # Lines that are too long for the terminal are better than columns that are cut off.
        console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).minimum)
        console.print(table)


def _row(line: dict[str, Any], families: list[str], private: bool) -> tuple[str, ...]:
    if "error" in line:
        return (str(line["number"]), *[""] * (5 + private + len(families)), ", ".join(line["status"]))
    return (
        str(line["number"]),
        _date(line["created_s"]),
        str(line["round"]),
        line["rule"],
        str(line["accepted"]),
        str(line["left_out"]),
        *(["–" if line["epsilon"] is None else f"{line['epsilon']:.4g}"] if private else []),
        *(_rate(line["acceptance"].get(family)) for family in families),
        ", ".join(line["status"]),
    )


def _family_row(name: str, each: dict[str, Any]) -> tuple[str, ...]:
    length = each["mean_acceptance_length"]
    return (
        name,
        _rate(each["acceptance"]),
        _rate(each["promoted"]),
        _signed(each["difference"]),
        "–" if length is None else f"{length:.2f}",
        f"{each['proposals']:,}",
        _rate(each["acceptance_in_training"]),
    )


def _norms_json(each: Norms) -> dict[str, float | None]:
    return {"first": each.first, "second": each.second, "difference": each.difference, "relative": each.relative}


def _norms_row(name: str, each: Norms) -> tuple[str, ...]:
    relative = "–" if each.relative is None else f"{each.relative:.1%}"
    return name, f"{each.first:.4g}", f"{each.second:.4g}", f"{each.difference:.4g}", relative


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _date(at_s: float | None) -> str:
    return "–" if at_s is None else datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M")


def _delta(privacy: dict[str, Any] | None) -> str:
    delta = (privacy or {}).get("delta")
    return f" at δ {delta:g}" if isinstance(delta, int | float) else ""


def _shown(text: str) -> str:
    """What moves no cursor and any terminal can print."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
