"""The command ``fleetdraft vocabulary``: what a drafter can spell of a target's vocabulary. It opens no model."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..spelling.coverage import Coverage, coverage
from ..spelling.text import TextCodec
from ..spelling.tokenizer_pair import TokenizerPair
from ..spelling.trie_cache import default_directory

#: Counts of ``Coverage`` in the order of the table, and what they say.
_LINES = {
    "direct": "one drafter token",
    "ends": "end of text, paired with the drafter's",
    "ngrams": "several drafter tokens",
    "special": "no path: special, mapped by role only",
    "padding": "no path: unknown to the tokenizer (padding of the logits)",
    "unspellable": "no path: spells nothing",
    "duplicate": "no path: spells what another id spells",
    "lacking": "no path: needs a byte that the drafter lacks",
}


def vocabulary(
    drafter: Annotated[Path, typer.Option("--drafter", metavar="DIR", help="The drafter's model directory.")],
    target: Annotated[Path, typer.Option("--target", metavar="DIR", help="A target's model directory.")],
    width: Annotated[
        int | None,
        typer.Option("--width", min=1, max=1 << 22, help="Width of the target's logits (default: its config's)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Counts which of a target's tokens a drafter can spell, and why it cannot spell the others.

    Only the tokenizers are read, so a directory with a tokenizer.json is enough.

    Example:

      fleetdraft vocabulary --drafter models/drafter --target models/target
    """
    drafts, targets = TextCodec.from_directory(drafter), TextCodec.from_directory(target, width)
    shared = len(targets.vocabulary.ids.keys() & drafts.vocabulary.ids.keys())
    counted = coverage(targets.vocabulary, TokenizerPair(targets, drafts, default_directory()).paths("full"))
    if as_json:
        print(json.dumps({"schema": 1, "shared_byte_strings": shared} | counted.to_json()))
        return
    Console().print(_table(f"{target.resolve().name}, spelled by {drafter.resolve().name}", shared, counted))


def _table(title: str, shared: int, counted: Coverage) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_footer=False)
    table.add_column("target tokens")
    table.add_column("count", justify="right")
    table.add_column("share", justify="right")
    values: dict[str, Any] = counted.to_json() | {"ngrams": sum(counted.ngrams.values())}
    for name, meaning in _LINES.items():
        table.add_row(meaning, f"{values[name]:,}", f"{values[name] / counted.tokens:.1%}")
    table.add_section()
    table.add_row("all", f"{counted.tokens:,}", "")
    table.add_row("byte strings that both vocabularies have", f"{shared:,}", "")
    return table
