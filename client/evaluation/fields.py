"""Values of a file of figures, checked as they are read. It knows no figure.

Every function returns its argument, or raises ``ValueError`` with a line that says what was given and expected.
"""

import math
import reprlib
from typing import Any

DAMAGED = (KeyError, TypeError, AttributeError, ValueError, OverflowError)
"""What reading a file of another form may raise."""

_MOST_SECONDS = 1e12


def text(value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise ValueError(f"{reprlib.repr(value)}, expected a text")
    return value


def count(value: Any, below: float = 2**64) -> int:
    """A whole number >= 0."""
    if type(value) is not int or not 0 <= value < below:
        raise ValueError(f"{reprlib.repr(value)}, expected a whole number >= 0")
    return value


def number(value: Any, most: float = _MOST_SECONDS) -> float:
    """A finite number >= 0."""
    if type(value) not in (int, float) or not (math.isfinite(value) and 0 <= value <= most):
        raise ValueError(f"{reprlib.repr(value)}, expected a number from 0 to {most:g}")
    return float(value)
