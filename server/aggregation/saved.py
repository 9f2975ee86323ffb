"""A running aggregate between two processes: plain values and arrays. It knows neither rule nor file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a running aggregate consists of.

    Args:
      about: plain values, as JSON.
      arrays: by name. They never change: the same object in two of these values is the same content.
    """

    about: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
