"""Where the bundle is that is shipped inside the package. It knows nothing else of the folder that holds it."""

from pathlib import Path

EMBEDDED = Path("embedded")
"""Name of the bundle that is shipped inside the package."""


def located(bundle: Path) -> Path:
    """The directory of a bundle; ``EMBEDDED`` names the shipped one, unless a directory of that name is here."""
    if bundle == EMBEDDED and not bundle.exists():
        return Path(__file__).parents[1] / "client" / "embedded"
    return bundle
