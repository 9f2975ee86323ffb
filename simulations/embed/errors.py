"""The errors of this package, as a branch of the project's tree; each message is one line that names the likely cause.

FleetdraftError
├── UserError
│   ├── SourcesMissing     the standard library has no readable sources
│   ├── PromptsShort       a user's text has too few prompts
│   ├── OutOfOrder         a command needs the output of an earlier one
│   └── CheckpointForeign  a checkpoint was written by another job
└── Stopped                a run was told to stop, and has saved where it is
"""

from ...common.errors import FleetdraftError, UserError


class SourcesMissing(UserError):
    """The standard library has no readable sources, or lacks a package that is a user."""


class PromptsShort(UserError):
    """A user's text has fewer prompts than asked for."""


class OutOfOrder(UserError):
    """A command needs the output of an earlier command."""


class CheckpointForeign(UserError):
    """A checkpoint was written by a job with other settings or another corpus."""


class Stopped(FleetdraftError):
    """A run was told to stop before its last step, and has saved where it is."""
