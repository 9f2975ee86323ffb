"""Flower's SuperLink with a guard at the door: from other machines, only devices come in.

Flower 1.41 serves three interfaces on one port: devices (``/v1/fleet/``, by keys), the operator (``/v1/control/``) and
its own helpers. Without a login service the operator's is open to whoever reaches the port, who could start an app of
his own, which is code on the server and on every device, or admit a key. Here it is open to this machine only.
Started as ``python -m fleetdraft.server.deployment.guarded_superlink`` with the arguments of ``flower-superlink``.
"""

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
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (HEADER.encode(), b"on")]}
            await send(message)

        if scope["type"] == "lifespan" or (scope["type"] == "http" and _welcome(scope)):
            await self._app(scope, receive, marked)
        elif scope["type"] == "http":
            await marked({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await marked({"type": "http.response.body", "body": b"only for the server's own machine\n"})


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


def install() -> None:
    """Has Flower put the guard before everything else that it does with a request."""
    extensions.get_middleware = lambda: (Middleware(Guard),)


if __name__ == "__main__":
    from flwr.superlink.cli import flower_superlink

    install()
    flower_superlink()
