"""Where a block's time goes: in ONNX Runtime for target or drafter, or in our own code. It knows no law and no text."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import onnxruntime as ort

from ...client.pair import Pair
from ...client.runtimes.onnx_decoder import OnnxDecoder
from ...common.errors import ConfigError

TARGET, DRAFTER = "target", "drafter"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One run of a graph; times in seconds on the clock of ``time.perf_counter``."""

    model: str
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, kw_only=True)
class BlockTime:
    """Seconds of one block: from the end of the target call before to the end of its own."""

    wall_s: float
    target_s: float
    drafter_s: float

    @property
    def own_s(self) -> float:
        """Seconds outside ONNX Runtime."""
        return self.wall_s - self.target_s - self.drafter_s


@contextmanager
def stopwatch(pair: Pair) -> Iterator[list[Call]]:
    """Logs every run of the pair's models while it is open; the list is filled when it closes.

    Raises:
      ConfigError: the target does not run on ONNX Runtime.
    """
    if not isinstance(pair.target, OnnxDecoder):
        raise ConfigError(f"the target is a {type(pair.target).__name__}, expected one on ONNX Runtime")
    calls: list[Call] = []
    log: list[tuple[str, float, float]] = []
    models = {TARGET: pair.target.model, DRAFTER: pair.drafter.model}
    sessions = {name: model.session for name, model in models.items()}
    try:
        for name, model in models.items():
            model.session = _TimedSession(sessions[name], name, log)
        yield calls
    finally:
        for name, model in models.items():
            model.session = sessions[name]
        # Not while the text is generated: what is made there counts as our own time.
        calls += [Call(model=name, start_s=start, end_s=end) for name, start, end in log]


def block_times(calls: Sequence[Call]) -> list[BlockTime]:
    """The blocks of one text, without the first, whose calls also read the prompt.

    Args:
      calls: of one text in order; the target's first call reads the prompt (of two tokens or more).
    """
    ends = [i for i, call in enumerate(calls) if call.model == TARGET][1:]
    return [
        BlockTime(
            wall_s=calls[last].end_s - calls[before].end_s,
            target_s=calls[last].seconds,
            drafter_s=sum(call.seconds for call in calls[before + 1 : last]),
        )
        for before, last in pairwise(ends)
    ]


def own_share(blocks: Sequence[BlockTime]) -> float:
    """Share of the blocks' wall time that is outside ONNX Runtime; 0 without blocks."""
    wall = sum(block.wall_s for block in blocks)
    return sum(block.own_s for block in blocks) / wall if wall else 0.0


class _TimedSession:
    """A session whose runs are logged."""

    def __init__(self, session: ort.InferenceSession, model: str, log: list[tuple[str, float, float]]) -> None:
        self._session, self._model, self._log = session, model, log

    def run_with_iobinding(self, binding: ort.IOBinding) -> None:
        start = time.perf_counter()
        self._session.run_with_iobinding(binding)
        self._log.append((self._model, start, time.perf_counter()))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)
