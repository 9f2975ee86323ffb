"""A decision that the device took on its own about drafting or adapters, as one value. It knows not who took it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was done, and why, for people to read.

    what: the act, in a few words: ``drafting switched off``.
    why: the figures that led to it, in one line.
    at_block: blocks that whoever decided had seen by then.
    """

    what: str
    why: str
    at_block: int
