"""An acceptance head that is right early: a logistic regression learned verdict by verdict. It knows no text.

    x = (h / rms(h), log of the largest probability of the drafter's row, 1),    P = sigmoid(w x)

h is the drafter's last hidden state at a position boundary. The weights are a normal belief: mean w, covariance C. A
verdict y in [0, 1] moves it by one step of Newton's method on the posterior (an extended Kalman filter; Spiegelhalter &
Lauritzen 1990, Penny & Roberts 1999),

    s = P (1 - P),    k = C x / (1 / s + x C x),    w <- w + k (y - P) / s,    C <- C - k (C x)

so that each verdict is used once and counts in full, where gradient descent needs many passes: over the first eight
texts of a measured stream its loss is 0.35, that of the network of ``acceptance_head.py`` 0.60, and 0.36 after 128.
A belief of which nothing more was heard relaxes to the first one, since adapters and subjects change; it does so at
each boundary that it is asked about, be there a verdict or not, so that what it thinks hopeless is tried again.

A state wider than ``WIDEST`` is projected on that many fixed random directions: C has a row for each.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ...common.errors import ConfigError
from .acceptance_head import PRIOR
from .boundary import Boundary
from .head_file import fill, head_bytes, head_read

Floats = NDArray[np.float32]

WIDEST = 256
"""Numbers of a state that the head weighs."""
_FORMAT = "fleetdraft logistic acceptance head 1"
_SUREST = 0.02
"""Least s: a verdict against all expectation must not throw the weights far."""
_RELAX_ROWS = 16
"""Boundaries between two relaxations, each of which passes over all of C."""
_MOST_PASSED = 10**6
"""Boundaries that wait for a relaxation, at most, in what is read: by then everything was forgotten."""
_PROJECTION_SEED = 0
_PRIOR_LOGIT = math.log(PRIOR / (1 - PRIOR))


@dataclass(frozen=True, kw_only=True)
class LogisticConfig:
    """What is believed of the weights before anything was seen, and how long verdicts count.

    state_variance, sureness_variance, constant_variance: of the weights of the state, of the row's largest log
    probability, and of the constant. forgetting: share of w and C that relaxes with a boundary. pending: verdicts that
    wait for ``train`` at most, the oldest are dropped.
    """

    state_variance: float = 0.1
    sureness_variance: float = 0.5
    constant_variance: float = 1.0
    forgetting: float = 1e-5
    pending: int = 4096

    def __post_init__(self) -> None:
        for name in ("state_variance", "sureness_variance", "constant_variance"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a finite number > 0")
        if not 0 <= self.forgetting < 1:
            raise ConfigError(f"forgetting is {self.forgetting}, expected 0 or more, below 1")
        if self.pending < 1:
            raise ConfigError(f"pending is {self.pending}, expected at least 1")


class LogisticHead:
    """An acceptance head that learns from each verdict once.

    Args:
      hidden_size: of the drafter's states.
      config: what it believes at first.
    """

    mismatch_weight = 1.0
    """Of refused proposals in what it minimises: P is a probability."""

    def __init__(self, hidden_size: int, config: LogisticConfig | None = None) -> None:
        if hidden_size < 1:
            raise ConfigError(
                f"the hidden size is {hidden_size}, expected at least 1; this drafter's graph gives no states"
            )
        self.hidden_size, self._config = hidden_size, config or LogisticConfig()
        width, c = min(hidden_size, WIDEST), self._config
        variances = [c.state_variance] * width + [c.sureness_variance, c.constant_variance]
        self._variances = np.array(variances, np.float32)
        self._weights, self._covariance = np.zeros(width + 2, np.float32), np.diag(self._variances)
        self._weights[-1] = _PRIOR_LOGIT
        self._work = np.empty_like(self._covariance)
        """For what is to be taken from C: a new array of this size would be new pages of memory each time."""
        self.seen = 0
        """Verdicts learned so far."""
        self._pending = deque[tuple[Floats, float]](maxlen=self._config.pending)
        self._passed = 0
        """Boundaries since the last relaxation."""

    def see(self, boundary: Boundary) -> Floats:
        """float32 (min(hidden size, ``WIDEST``) + 2,): x at a boundary; where the drafter gives no numbers, zeros."""
        wide = boundary.hidden.astype(np.float64)  # the square of a large number is no float32
        square = float(wide @ wide)
        if not math.isfinite(square):
            return np.zeros_like(self._weights)
        wide /= math.sqrt(square / len(wide)) or 1.0
        if len(wide) > WIDEST:
            wide = wide @ _projection(len(wide))
        x = np.empty_like(self._weights)
        x[:-2], x[-2], x[-1] = wide, _sureness(boundary.row), 1.0
        return x

    def __call__(self, x: Floats) -> float:
        """P(the next proposal is accepted), given that those before it are."""
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, float(self._weights @ x)))))

    def doubt(self, x: Floats) -> float:
        """Standard deviation of the logit of that probability."""
        return math.sqrt(max(0.0, float(x @ self._spread(x))))

    def __len__(self) -> int:
        return len(self._pending)

    def observe(self, seen: Sequence[Floats], labels: Iterable[float]) -> None:
        """Keeps what became of the proposals behind boundaries until ``train``: min(1, p / r) of the first ones."""
        self._passed += len(seen)
        self._pending.extend(zip(seen, labels, strict=False))

    def train(self) -> float:
        """Learns all that waits; returns its mean loss before each was learned, 0 where nothing waits."""
        loss, count = 0.0, 0
        while self._pending:
            loss, count = loss + self._learn(*self._pending.popleft()), count + 1
        if self._passed >= _RELAX_ROWS:
            self._relax(1 - (1 - self._config.forgetting) ** self._passed)
            self._passed = 0
        return loss / max(1, count)

    def _learn(self, x: Floats, label: float) -> float:
        p = self(x)
        s = max(p * (1 - p), _SUREST)
        spread = self._spread(x)
        gain = spread / (1 / s + float(x @ spread))
        self._weights += gain * ((label - p) / s)
        self._covariance -= np.multiply.outer(gain, spread, out=self._work)
        self.seen += 1
        return -label * math.log(p) - (1 - label) * math.log(1 - p)

    def _spread(self, x: Floats) -> Floats:
        """C x row by row: BLAS would start threads for it all, and they spin on the cores that the target needs."""
        spread: Floats = np.vecdot(self._covariance, x)
        return spread

    def _relax(self, share: float) -> None:
        """Mean and covariance; the latter symmetric again, too: rounding would make it grow apart."""
        self._weights *= 1 - share
        self._weights[-1] += share * _PRIOR_LOGIT
        np.add(self._covariance, self._covariance.T, out=self._work)
        np.multiply(self._work, (1 - share) / 2, out=self._covariance)
        self._covariance[np.diag_indices(len(self._variances))] += share * self._variances

    # --- state ------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Everything: what ``from_bytes`` makes of it goes on exactly as this one would."""
        about = {
            "format": _FORMAT,
            "hidden_size": self.hidden_size,
            "config": asdict(self._config),
            "seen": self.seen,
            "passed": self._passed,
        }
        waiting = list(self._pending)
        return head_bytes(
            about,
            weights=self._weights,
            covariance=self._covariance,
            inputs=np.array([x for x, _ in waiting], np.float32).reshape(len(waiting), len(self._weights)),
            labels=np.array([label for _, label in waiting]),
        )

    @classmethod
    def from_bytes(cls, data: bytes, hidden_size: int) -> "LogisticHead":
        """What ``to_bytes`` wrote.

        Raises:
          ModelError: it did not, or the bytes are torn.
          FingerprintError: of a drafter with another hidden size.
        """
        with head_read(data, _FORMAT, hidden_size) as (about, arrays):
            head = cls(hidden_size, LogisticConfig(**about["config"]))
            fill(head._weights, "weights", arrays)
            fill(head._covariance, "covariance", arrays)
            count = len(arrays["labels"])
            inputs, labels = np.zeros((count, len(head._weights)), np.float32), np.zeros(count)
            fill(inputs, "inputs", arrays)
            fill(labels, "labels", arrays)
            head.seen = int(about["seen"])
            head.observe(list(inputs), labels.tolist())
            head._passed = min(int(about.get("passed", 0)), _MOST_PASSED)  # an older state does not say
        return head


@cache
def _projection(size: int) -> NDArray[np.float64]:
    """(size, WIDEST): keeps the size of what it is given."""
    return np.random.default_rng(_PROJECTION_SEED).standard_normal((size, WIDEST)) / math.sqrt(WIDEST)


def _sureness(row: NDArray[np.float32]) -> float:
    """Log of the largest probability of a row of logits; 0 where that is no number."""
    top = row.max()
    return -math.log(float(np.exp(row - top).sum())) if math.isfinite(top) else 0.0
