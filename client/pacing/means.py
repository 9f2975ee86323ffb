"""Means of the newest numbers, and a line through the newest points. They know neither clocks nor tokens."""

_NEWEST = 0.02
"""Least weight of the newest number in a mean; the first ones count alike."""
_OUTLIER = 3.0
"""A time this many means long counts as that long only: the machine did something else."""


class Mean:
    """An exponentially weighted mean that begins as a plain one."""

    def __init__(self, newest: float = _NEWEST) -> None:
        self._newest = newest
        self.value, self.count = 0.0, 0

    def add(self, value: float) -> None:
        """Takes the newest number in."""
        self.count += 1
        self.value += max(self._newest, 1 / self.count) * (value - self.value)

    def toward(self, prior: float, weight: float) -> float:
        """The mean, as if ``prior`` had come ``weight`` times before: of little it says little."""
        return (weight * prior + self.count * self.value) / (weight + self.count)

    def add_time(self, seconds: float) -> None:
        """Adds a time; one that stands out counts as a slow one only, one below zero as zero: clocks jump."""
        self.add(self.bounded(max(0.0, seconds)))

    def bounded(self, seconds: float) -> float:
        """``seconds``, or what counts of it."""
        return min(seconds, _OUTLIER * self.value) if self.value > 0 else seconds


class Line:
    """A straight line through the newest points (x, y), where y is a time."""

    def __init__(self) -> None:
        self._x, self._y, self._xx, self._xy = Mean(), Mean(), Mean(), Mean()

    def add(self, x: float, y: float) -> None:
        """Takes the newest point in."""
        y = self._y.bounded(max(0.0, y))
        for mean, value in ((self._x, x), (self._y, y), (self._xx, x * x), (self._xy, x * y)):
            mean.add(value)

    @property
    def slope(self) -> float:
        """Never below zero; through the origin where all points have one x, 0 where there is none."""
        spread = self._xx.value - self._x.value**2
        if spread < 1e-3:
            return self._y.value / self._x.value if self._x.value else 0.0
        return max(0.0, (self._xy.value - self._x.value * self._y.value) / spread)

    def at(self, x: float) -> float:
        """Never below zero or falling."""
        return max(0.0, self._y.value + self.slope * (x - self._x.value))
