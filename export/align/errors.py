"""The errors of this room, as a branch of the project's tree.

FleetdraftError
├── UserError
│   └── CheckpointForeign  a checkpoint was written by another job
└── Stopped                a run was told to stop, and has saved where it is
"""

from ...common.errors import FleetdraftError, UserError


class CheckpointForeign(UserError):
    """A checkpoint was written by a job with other settings or another corpus."""


class Stopped(FleetdraftError):
    """A run was told to stop before its last step, and has saved where it is."""
