"""Why a device's call is refused: a status that says what to do about it, and a line."""

import grpc

from ...common.errors import FleetdraftError


class Refusal(FleetdraftError):
    """A call that is not served; nothing has changed by it."""

    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.status = status


def never(message: str) -> Refusal:
    """The call can never be right."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, message)


def too_much(message: str) -> Refusal:
    """Too large or too often; the device has to wait."""
    return Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
