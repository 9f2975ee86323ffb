"""A phone's stand-in: a device's folder takes part through a gateway, as an app on a phone would. It knows no Flower.

Run it as ``python -m fleetdraft.simulations.stand_in``; the folder is one that ``fleetdraft node init`` makes, of which
settings and prompts are used and the key is not.
"""

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..client.device_file import DeviceFile
from ..client.phone import Phone, PhoneConfig, open_channel
from ..common.errors import ConfigError
from ..common.messages import Release
from .bench.table import run

PROGRAM = "python -m fleetdraft.simulations.stand_in"
PROMOTED = "promoted"
"""Folder of the release in force, an adapter directory, in the device's folder."""

Tell = Callable[[dict[str, Any]], None]


async def live(device: DeviceFile, address: str, authority: Path, token: str, longest_s: float, tell: Tell) -> None:
    """Visits the gateway whenever it says, until it is cancelled.

    Args:
      address: host:port of the gateway. authority: what its certificate is checked with.
      longest_s: comes back after so many seconds at most, whatever the gateway says.
      tell: told what came of each visit, and which release is in force.

    Raises:
      FleetError: the gateway refused, or could not be reached.
    """
    participant = await asyncio.to_thread(device.participant)
    config = PhoneConfig(token=token, base=device.bundle.base, family=participant.family, app_version="stand-in")
    in_force: Release | None = None
    async with open_channel(address, authority) as channel:
        phone = Phone(channel, config, participant, random.SystemRandom().random)
        while True:
            visit = await phone.visit()
            if phone.in_force is not None and phone.in_force is not in_force:
                in_force = phone.in_force
                in_force.adapter.save(device.folder / PROMOTED, in_force.base)
                tell({"in_force": in_force.number, "digest": in_force.adapter.digest})
            if visit.come_back_s is None:
                tell({"outcome": visit.outcome, "reason": visit.reason})
            else:
                tell({"come_back_s": visit.come_back_s, "why": visit.why})
            await asyncio.sleep(min(longest_s, visit.come_back_s or 0.0))


def main(
    device: Annotated[Path, typer.Argument(metavar="DIR", help="The device's folder.")],
    gateway: Annotated[str, typer.Option("--gateway", metavar="HOST:PORT", help="Where the gateway is.")],
    authority: Annotated[Path, typer.Option("--ca", metavar="ca.pem", help="The gateway's tls/ca.pem.")],
    token_file: Annotated[Path, typer.Option("--token-file", metavar="FILE", help="The token of this phone.")],
    longest_wait: Annotated[
        float, typer.Option("--longest-wait", min=0, metavar="SECONDS", help="Come back after so long at most.")
    ] = 86400.0,
) -> None:
    """Takes part in a fleet through its gateway, until it is interrupted.

    Prints a JSON object a line. The release in force is an adapter directory, DIR/promoted.

    Example:

      python -m fleetdraft.simulations.stand_in email --gateway localhost:9444 --ca gate/tls/ca.pem --token-file t
    """
    for file in (authority, token_file):
        if not file.is_file():
            raise ConfigError(f"no file {file}, expected one from the gateway's operator")
    settings, token = DeviceFile.open(device / "device.toml"), token_file.read_text(encoding="ascii").strip()
    asyncio.run(
        live(settings, gateway, authority, token, longest_wait, lambda told: print(json.dumps(told), flush=True))
    )


if __name__ == "__main__":
    raise SystemExit(run(main, PROGRAM))
