"""Text from elsewhere, for a terminal or a log. It knows not where it comes from."""


def printable(text: str) -> str:
    """``text`` with escapes for what moves a cursor, hides or colours: any terminal can print it as it is."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
