"""A job: the settings that decide a result, as a text that two runs share only if they would give the same.

It does not know what the settings mean.
"""

import json
from collections.abc import Mapping
from typing import Any

_SHOWN = 3


def job_of(settings: Mapping[str, Any]) -> str:
    """The job of settings, which may be nested; files and texts stand in them as digests."""
    return json.dumps(settings, sort_keys=True)


def differing(kept: object, asked: str) -> str:
    """Names the first settings in which a kept job differs from the one asked for: ``" (schedule.steps, seed)"``.

    Empty where the kept one is none.
    """
    try:
        before, now = json.loads(str(kept)), json.loads(asked)
    except ValueError:
        return ""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return ""
    one, other = _flat(before), _flat(now)
    names = sorted(name for name in one | other if name not in one or name not in other or one[name] != other[name])
    more = ["…"] if len(names) > _SHOWN else []
    return f" ({', '.join(names[:_SHOWN] + more)})" if names else ""


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat = dict[str, Any]()
    for name, value in settings.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return flat
