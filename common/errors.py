"""The one error tree. Each error carries a message that says what was given, what was expected and what to do.

FleetdraftError            anything this project raises on purpose
├── UserError              bad input: the command line prints the message and exits with 2
│   ├── ModelError         a directory or file is no model, tokenizer or bundle that can be used
│   ├── FingerprintError   two artefacts that do not belong together
│   ├── PromptsError       a prompts file that cannot be read
│   ├── ContextLimitError  a text is longer than the model's context
│   ├── ConfigError        a setting or a TOML key that is unknown or out of range
│   └── MissingExtraError  a command needs an optional dependency that is not installed
├── TrainingError          training on the device diverged; the adapter stays as it was
├── UpdateRejected         an update that the gate does not let in, with the reason
├── RegistryError          a release that is missing, torn or does not match its digest
├── SecAggError            secure aggregation that cannot go on; nobody's update is revealed
├── BudgetSpent            the next round would spend more privacy than the run may
└── FleetError             a fleet run that cannot go on: too few devices, or its engine failed
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a device's answer does not count, as a code to be counted; the sentence beside it says the rest."""

    SILENT = "silent"
    """No answer within the time."""
    LATE = "late"
    """Enough answers had come before."""
    DUPLICATE = "duplicate"
    """The same request was answered before; the first answer counts."""
    TRANSPORT = "transport"
    """The transport failed, also when it was tried again."""
    DEVICE_ERROR = "device-error"
    """The device answered that it failed."""
    MALFORMED = "malformed"
    """No message of ours, or tensors of other names or dtypes."""
    FINGERPRINT = "wrong-fingerprint"
    """Another base, layout or release."""
    STALE = "stale"
    """From a release that is too far behind."""
    FROZEN = "frozen"
    """A factor was trained that this round leaves as it is."""
    RANK = "rank"
    """A tensor of another shape."""
    NOT_FINITE = "not-finite"
    NORM = "norm"
    """Larger than the clip allows."""
    WEIGHT = "weight"
    """Nothing was learned from, or more than a device can have."""
    DROPPED_OUT = "dropped-out"
    """Of secure aggregation; the sentence names the stage."""
    ABORTED = "aborted"
    """Secure aggregation ended without a sum."""
    UNKNOWN = "unknown-device"
    """It did not say hello, or under a name that is taken."""


class FleetdraftError(Exception):
    """Root of the tree."""


class UserError(FleetdraftError):
    """Bad input from a person; shown as one line, exit code 2."""


class ModelError(UserError):
    """A directory or file is not a model, tokenizer or bundle that can be used."""


class FingerprintError(UserError):
    """Two artefacts (bundle, adapter, target) that do not belong together."""


class PromptsError(UserError):
    """A prompts file that cannot be read as JSONL of ``{"prompt": ..., "task": ...}``."""


class ConfigError(UserError):
    """A setting that is unknown or out of range; names field, value and expectation."""


class MissingExtraError(UserError):
    """A command whose optional dependency is not installed; names the extra."""

    def __init__(self, command: str, extra: str, module: str) -> None:
        super().__init__(
            f"'{command}' needs the extra [{extra}] (module '{module}' is not installed); "
            f"run in the source tree: pip install '.[{extra}]'"
        )


class ContextLimitError(UserError):
    """A text is longer than the model's context."""


class TrainingError(FleetdraftError):
    """Training on the device diverged; the adapter stays as it was."""


class UpdateRejected(FleetdraftError):
    """An update that the gate does not let in; the message is the reason, ``code`` its kind."""

    def __init__(self, message: str, code: Reason = Reason.MALFORMED) -> None:
        super().__init__(message)
        self.code = code


class RegistryError(FleetdraftError):
    """A release that is missing, torn or does not match its digest."""


class SecAggError(FleetdraftError):
    """Secure aggregation stops here: the message says why; nobody's update is revealed."""


class BudgetSpent(FleetdraftError):
    """The next round would spend more privacy than the run may; what has been released keeps its promise."""


class FleetError(FleetdraftError):
    """A fleet run that cannot go on: too few devices joined, or its engine failed."""
