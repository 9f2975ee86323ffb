"""Flower's SuperLink with a guard at the door: from other machines, only devices come in.

Flower 1.41 serves three interfaces on one port: devices (``/v1/fleet/``, by keys), the operator (``/v1/control/``) and
its own helpers. Without a login service the operator's is open to whoever reaches the port, who could start an app of
his own, which is code on the server and on every device, or admit a key. Here it is open to this machine only.
Devices come in once the SuperLink has been told who may join; Flower would refuse those that come sooner.
Started as ``python -m fleetdraft.server.deployment.guarded_superlink`` with the arguments of ``flower-superlink``.
"""

import os
from collections.abc import Callable
from functools import partial
from ipaddress import IPv6Address, ip_address

from flwr.superlink import extensions
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-fleetdraft-guard"
"""In every answer, so that a start where Flower left the guard out does not go unseen."""

_DEVICES = "/v1/fleet/"
_OPEN = "/health"


class Guard:
    """Refuses with 403 what does not come from this machine and is not meant for devices.

    Behind a proxy on this machine, the proxy has to send ``X-Forwarded-For``, or to pass ``/v1/fleet/`` only.

    Args:
      in_order: whether devices may come in; until then they get 503, upon which a SuperNode tries again.
    """

    def __init__(self, app: ASGIApp, in_order: Callable[[], bool] = lambda: True) -> None:
        self._app, self._in_order, self._devices_may = app, in_order, False

    def _open_to_devices(self) -> bool:
        self._devices_may = self._devices_may or self._in_order()
        return self._devices_may

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (HEADER.encode(), b"on")]}
            await send(message)

        async def refuse(status: int, reason: bytes) -> None:
            headers = [(b"content-type", b"text/plain")]
            await marked({"type": "http.response.start", "status": status, "headers": headers})
            await marked({"type": "http.response.body", "body": reason + b"\n"})

        if scope["type"] == "http" and not _welcome(scope):
            await refuse(403, b"only for the server's own machine")
        elif scope["type"] == "http" and scope["path"].startswith(_DEVICES) and not self._open_to_devices():
            await refuse(503, b"not yet told who may join; try again")
        elif scope["type"] in ("http", "lifespan"):
            await self._app(scope, receive, marked)


def _welcome(scope: Scope) -> bool:
    return scope["path"] == _OPEN or scope["path"].startswith(_DEVICES) or _is_local(scope.get("client"))


def _is_local(client: tuple[str, int] | None) -> bool:
    if client is None:
        return False
    try:
        address = ip_address(client[0])
    except ValueError:
        return False
    inner = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (inner or address).is_loopback


def install(in_order: Callable[[], bool] = lambda: True) -> None:
    """Has Flower put the guard before everything else that it does with a request."""
    extensions.get_middleware = lambda: (Middleware(Guard, in_order=in_order),)


if __name__ == "__main__":
    from flwr.superlink.cli import flower_superlink

    from .superlink import in_order  # which imports this module

    install(partial(in_order, os.getpid()))
    flower_superlink()
