"""What a fleet's report says of privacy: lines for the terminal, a section of the page. It knows no accountant."""

from collections.abc import Iterable, Sequence

from ..common import page
from ..server.report import RoundReport
from .results import FleetResults

_COVERED = (
    "The promise is to each device, about those who see all releases: they can hardly tell whether it took part with "
    "its updates or sent zeros. It needs an honest server, which adds the noise, and covers the adapters, not counters "
    "and reports."
)
_SUMMED = (
    "The server saw one sum a round, so what devices drafted while they trained is not known to it; what they measure "
    "in an evaluation is."
)


def lines(results: FleetResults) -> Iterable[str]:
    """What a reader must not miss."""
    if results.stopped:
        yield f"stopped: {results.stopped}"
    last = next((r.privacy for r in reversed(results.rounds) if r.privacy), None)
    if last is not None:
        yield f"Privacy: {last.line()}"
        if last.fleet_line():
            yield f"Privacy: {last.fleet_line()}"
    secure = [r for r in results.rounds if r.secure]
    if secure:
        whole = sum(not r.secure.aborted for r in secure if r.secure)
        yield f"Secure aggregation: a sum and no single update in {whole} of {len(secure)} rounds"


def section(rounds: Sequence[RoundReport]) -> Iterable[str]:
    """The page's section, where a round was private in some way."""
    if any(r.privacy for r in rounds):
        yield page.heading("Differential privacy", _COVERED)
        cells = [
            (str(r.round), f"{r.privacy.epsilon:.4g}", f"{r.privacy.noise_std:.4g}", f"{len(r.participants)}",
             f"{r.privacy.cohort} of {r.privacy.population}")
            for r in rounds
            if r.privacy
        ]  # fmt: skip
        columns = ["round", "ε so far", "noise (std) on each entry of the sum", "devices drawn", "on average"]
        yield page.table(columns, cells, text_columns=1)
    if any(r.secure for r in rounds):
        yield page.heading("Secure aggregation", _SUMMED)
        yield page.table(["round", "threshold", "answered by stage", "outcome"], list(_secure(rounds)), text_columns=4)


def _secure(rounds: Sequence[RoundReport]) -> Iterable[tuple[str, ...]]:
    for r in rounds:
        if r.secure:
            stages = r.secure.stages.items()
            counts = ", ".join(f"{name} {s.asked - len(s.dropped)} of {s.asked}" for name, s in stages)
            yield str(r.round), str(r.secure.threshold), counts, r.secure.aborted or "one sum"
