"""The errors of this package, as a branch of the project's tree; each message is one line that names the likely cause.

UserError
├── SourcesMissing     the standard library has no readable sources
├── PromptsShort       a user's text has too few prompts
└── OutOfOrder         a command needs the output of an earlier one
"""

from ...common.errors import UserError


class SourcesMissing(UserError):
    """The standard library has no readable sources, or lacks a package that is a user."""


class PromptsShort(UserError):
    """A user's text has fewer prompts than asked for."""


class OutOfOrder(UserError):
    """A command needs the output of an earlier command."""
