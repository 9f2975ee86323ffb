"""The gateway's guarantees towards Flower and phones in the ordinary course: one mean, everyone accounted for."""

import asyncio
from pathlib import Path

import numpy as np
from loopback import PATIENT_S, device_of, direct_mean, gateway

from fleetdraft.common.messages import Release, TrainTask

TASK = TrainTask(round=1, seed=7, timeout_s=PATIENT_S)


def test_the_answer_is_the_mean_of_the_phones_bit_by_bit(tmp_path: Path, release: Release) -> None:
    devices = [device_of(release, name=f"p{i}", seed=i) for i in range(3)]

    async def play() -> None:
        async with gateway(tmp_path, release) as gate:
            answer = await gate.ask(TASK)
            for device in devices:
                async with gate.phone(device.client, device) as phone:
                    assert (await phone.visit()).outcome == "ACCEPTED"
            update = await answer
            direct = direct_mean(devices, release, TASK)
            assert all(np.array_equal(update.delta[name], direct[name]) for name in direct)
            assert (update.devices, update.weight, update.counters.drafted) == (3, 3.0, 30)
            assert gate.counts() == {"accepted": 3}

    asyncio.run(play())
