"""What one generated text teaches the drafter: its context, with the target's judgement beside each row.

A lesson is the drafter's context of the text (``common/spelling.py``). A row that teaches carries the target's
distribution over the next drafter token (``teacher.py``): the K largest, the rest as tail mass. Where the emitted token
is an n-gram of drafter tokens, the rows along its path carry that path as labels.

Truncation to K makes a divergence one over K + 1 outcomes: what the teacher says *within* the tail is lost, and by the
log-sum inequality forward and reverse KL are lower bounds of the full ones. The likelihood of labels loses nothing.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ...common.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One text of L drafter tokens; row i judges the token after ``tokens[: i + 1]``."""

    tokens: NDArray[np.int64]
    """(L,)"""
    teacher_ids: NDArray[np.int64]
    """(L, K) drafter tokens, the likeliest first"""
    teacher_probs: NDArray[np.float32]
    """(L, K); zero where there is no teacher"""
    taught: NDArray[np.bool_]
    """(L,) rows that the divergence is taken on"""
    labels: NDArray[np.int64]
    """(L,)"""
    label_probs: NDArray[np.float32]
    """(L,) p of the target token whose path the labels are; 0 elsewhere"""
    ngram: NDArray[np.bool_]
    """(L,) rows that the n-gram likelihood is taken on"""
    written: float = 0.0
    """When, in seconds since 1970."""

    @property
    def judged(self) -> NDArray[np.bool_]:
        """(L,) rows that teach something."""
        return self.taught | self.ngram

    @property
    def rows(self) -> int:
        """How many rows teach something."""
        return int(self.judged.sum())

    @property
    def width(self) -> int:
        """K."""
        return self.teacher_ids.shape[1]

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        return sum(array.nbytes for array in self._arrays.values())

    def widened(self, width: int) -> "Lesson":
        """The same with ``width`` listed tokens: padded, or without the least likely."""
        more = [(0, 0), (0, max(0, width - self.width))]
        ids, probs = np.pad(self.teacher_ids, more)[:, :width], np.pad(self.teacher_probs, more)[:, :width]
        return replace(self, teacher_ids=ids, teacher_probs=probs)

    @property
    def _arrays(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _DTYPES}

    # --- storage ----------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """As safetensors; ``from_bytes`` gives the same lesson, bit for bit."""
        arrays = {name: np.ascontiguousarray(_narrow(array)) for name, array in self._arrays.items()}
        return save({**arrays, _WRITTEN: np.array([self.written], np.float64)})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Lesson":
        """Restores what ``to_bytes`` gave.

        Raises:
          ModelError: the bytes are no lesson.
        """
        try:
            arrays = load(data)
            written = float(arrays.pop(_WRITTEN)[0])
            lesson = cls(**{name: arrays.pop(name).astype(dtype) for name, dtype in _DTYPES.items()}, written=written)
        except (SafetensorError, KeyError, ValueError, IndexError, TypeError) as error:
            raise ModelError(f"not a lesson: {str(error).splitlines()[0]}") from error
        if arrays or not _sound(lesson):
            raise ModelError("not a lesson: its arrays do not fit together")
        return lesson


_WRITTEN = "written"
_DTYPES: dict[str, type[np.generic]] = {
    "tokens": np.int64,
    "teacher_ids": np.int64,
    "teacher_probs": np.float32,
    "taught": np.bool_,
    "labels": np.int64,
    "label_probs": np.float32,
    "ngram": np.bool_,
}


def _narrow(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Token ids take four bytes in a file."""
    return array.astype(np.int32) if array.dtype == np.int64 else array


def _sound(lesson: Lesson) -> bool:
    """Whether the arrays fit together and hold what can be trained on."""
    rows, wide = lesson.tokens.shape, lesson.teacher_ids.shape
    return (
        len(rows) == 1
        and rows == lesson.taught.shape == lesson.labels.shape == lesson.label_probs.shape == lesson.ngram.shape
        and len(wide) == 2
        and wide[:1] == rows
        and wide == lesson.teacher_probs.shape
        and min(ids.min(initial=0) for ids in (lesson.tokens, lesson.teacher_ids, lesson.labels)) >= 0
        and all(bool(((p >= 0) & (p <= 1)).all()) for p in (lesson.teacher_probs, lesson.label_probs))
        and bool(np.isfinite(lesson.written))
    )
