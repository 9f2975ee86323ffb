"""The command ``fleetdraft``, which prints each learner's checkpoint before it is written: its steps and its adapter.

``told_fleetdraft.py adapt --state DIR …``; what a kill leaves in the state has to be among the lines of all runs.
"""

import hashlib
import json
import sys
from typing import Any

from fleetdraft.client.learning.learner_state import ADAPTER, LEARNER
from fleetdraft.client.online import online
from fleetdraft.client.online.keeper import Keeper
from fleetdraft.common.cli import main

WORD = "checkpoint"


def checkpoint(blobs: dict[str, bytes]) -> str:
    """A line that tells it from all others."""
    digests = [hashlib.sha256(blobs[name]).hexdigest() for name in sorted(blobs)]
    assert {ADAPTER, LEARNER} <= set(blobs)
    return " ".join([WORD, str(json.loads(blobs[LEARNER])["done"]["steps"]), *digests])


class TellingKeeper(Keeper):
    def keep(self, **parts: Any) -> bool:
        if parts.get("learner") is not None:
            print(checkpoint(parts["learner"]), flush=True)
        return super().keep(**parts)


if __name__ == "__main__":
    online.Keeper = TellingKeeper  # type: ignore[misc]
    sys.exit(main())
