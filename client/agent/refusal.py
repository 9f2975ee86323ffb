"""Why the agent does not do what it is asked, beside bad input: by kind, for whoever answers. It knows no wire."""

from ...common.errors import FleetdraftError


class Refusal(FleetdraftError):
    """The agent does not do it now, or not as things are; the message says why."""


class Full(Refusal):
    """More is asked at once than it does; trying again later helps."""


class Draining(Refusal):
    """It is stopping."""


class Gone(Refusal):
    """Nobody waits for the answer any more."""


class Overdue(Refusal):
    """It took longer than the agent lets it."""


class NotNow(Refusal):
    """Not as things are: not opted in, not eligible, another bundle."""


class Cut(Refusal):
    """It was ended early by what another one asked, as a purge."""


class OtherWork(Refusal):
    """An id that stands for other work already."""
