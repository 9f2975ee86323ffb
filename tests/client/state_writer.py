"""Writes to a state as fast as it can and prints what was committed, until it is killed: ``state_writer.py DIR``.

A transaction adds a lesson, sets the counter to the number of lessons ever added, writes an adapter that names the same
step, and, from time to time, evicts. What ``check`` says holds after every commit.
"""

import sys
from pathlib import Path

from fleetdraft.client.state.state import State

KEPT = 8
FINGERPRINTS = {"base": "drafter", "layout": "layout"}


def adapter(step: int) -> bytes:
    """Larger than a page, of a size that changes."""
    return step.to_bytes(8, "little") * (500 + step % 700)


def lesson(step: int) -> bytes:
    return step.to_bytes(8, "little") * (1 + step % 900)


def write(state: State, step: int) -> None:
    with state.transaction():
        row = state.add_lesson("family", lesson(step))
        state.put("counter", str(step).encode())
        state.put_all("learner/", {"adapter": adapter(step), f"moments {step % 3}": bytes(step % 5000)})
        if step % 5 == 0:
            state.delete_lessons(range(row - KEPT + 1))


def check(state: State) -> int:
    """The last step written; all that is held is of it."""
    step = int(state.get("counter") or b"0")
    if not step:
        assert (state.blobs(), state.lessons()) == ([], [])
        return 0
    assert state.get_all("learner/") == {"adapter": adapter(step), f"moments {step % 3}": bytes(step % 5000)}
    held = state.lessons()
    assert [row.id for row in held] == list(range(held[0].id, step + 1))
    assert held[0].id == max(1, step - step % 5 - KEPT + 1)
    assert [row.data for row in held] == [lesson(row.id) for row in held]
    return step


if __name__ == "__main__":
    with State.open(Path(sys.argv[1]), **FINGERPRINTS) as opened:
        last = check(opened)
        while True:
            last += 1
            write(opened, last)
            print(last, flush=True)
