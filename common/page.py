"""A page that is complete in itself: styles are inside, nothing is loaded from elsewhere, every text is escaped.

It knows no result; drawings come as SVG.
"""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path


def page(title: str, sections: Iterable[str]) -> str:
    """The whole HTML page."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def header(title: str, about: str) -> str:
    """The title, and what a reader must know of the run."""
    return f'<h1>{escape(title)}</h1>\n<p class="about">{escape(about)}</p>'


def heading(title: str, hint: str) -> str:
    """The beginning of a section."""
    return f'<h2>{escape(title)}</h2>\n<p class="hint">{escape(hint)}</p>'


def lines(kind: str, texts: Sequence[str]) -> str:
    """A list of remarks, ``warnings`` or ``notes``; nothing of none."""
    return f'<ul class="{kind}">{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>' if texts else ""


def figure(svg: str, caption: str) -> str:
    """A drawing with its caption."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int, marked: int | None = None
) -> str:
    """An HTML table whose first ``text_columns`` columns are text, the others figures; row ``marked`` stands out.

    A line break in a text is one on the page.
    """
    kinds = [' class="text"' if i < text_columns else "" for i in range(len(columns))]
    head = "".join(f"<th{kind}>{_broken(name)}</th>" for kind, name in zip(kinds, columns, strict=True))
    body = []
    for i, row in enumerate(rows):
        cells = "".join(f"<td{kind}>{_broken(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        body.append(f'<tr class="worst">{cells}</tr>' if i == marked else f"<tr>{cells}</tr>")
    inside = "\n".join(body)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{inside}\n</tbody>\n</table></div>'


def _broken(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
