"""How much one device's counters may weigh among those of others. It knows neither rounds nor releases."""

import math
from dataclasses import fields
from fractions import Fraction

from ..common.metrics import DraftCounters

#: No counter of one device counts as more. A device measures a few prompts, some hundred proposals; what it says of
#: itself is its own word, and acceptance rates are sums over devices.
MOST = 2048


def counted(counters: DraftCounters) -> DraftCounters:
    """One device's counters as they are added to those of others.

    Guarantees:
      - No field is above ``MOST``.
      - Rates stay as they are, but for rounding up to whole numbers; what was possible stays possible.
    """
    given = {field.name: getattr(counters, field.name) for field in fields(counters)}
    largest = max(given.values())
    if largest <= MOST:
        return counters
    seconds = given.pop("seconds") * MOST / largest
    scaled = {name: math.ceil(Fraction(value) * MOST / Fraction(largest)) for name, value in given.items()}
    return DraftCounters(**scaled, seconds=seconds)
