"""The device in TypeScript joins a real gateway over TLS, beside a device in Python: one round, one mean."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import Loopback, device_of, gateway, table

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.learning.lesson import Lesson
from fleetdraft.client.learning.trainer import AdamW, AdamWConfig
from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.lora import Arrays
from fleetdraft.common.messages import EvaluateTask, Release, TrainTask, Update, clipped, l2_norm
from fleetdraft.common.objective import Objective

FAMILY = "spm-3072"
#: A mean of two, so half of the change of each.
TOLERANCE = 1e-6
TASK = TrainTask(round=1, seed=7, factors=("B",), clip_norm=0.05, timeout_s=60)


@pytest.fixture(scope="module")
def command(typescript: list[str]) -> list[str]:
    return [*typescript, "join"]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open(EMBEDDED)


@pytest.fixture(scope="module")
def release(bundle: Bundle) -> Release:
    rng, initial = np.random.default_rng(4), bundle.adapter()
    change = {n: rng.normal(0, 0.02, v.shape).astype(np.float32) for n, v in initial.arrays.items()}
    return Release(number=3, adapter=initial.plus(change), base=bundle.base)


@pytest.fixture(scope="module")
def lessons() -> list[Lesson]:
    """Numbers in place of texts: what crosses is the same."""
    rng, width, length = np.random.default_rng(5), 4, 24
    return [
        Lesson(
            tokens=rng.integers(3, 3000, length),
            teacher_ids=np.stack([rng.choice(3000, width, replace=False) for _ in range(length)]),
            teacher_probs=np.sort(rng.dirichlet(np.ones(width + 1), length)[:, :width]).astype(np.float32),
            taught=rng.random(length) < 0.8,
            labels=rng.integers(3, 3000, length),
            label_probs=rng.random(length).astype(np.float32),
            ngram=rng.random(length) < 0.3,
        )
        for _ in range(10)
    ]


def expected_change(bundle: Bundle, release: Release, lessons: list[Lesson]) -> Arrays:
    """What this device would have sent."""
    step, adapter, optimizer = bundle.pair("spm").train_step(), release.adapter, AdamW(AdamWConfig())
    for at in range(0, len(lessons), 8):
        gradient = step(adapter.arrays, lessons[at : at + 8], Objective(), np.random.default_rng(0)).arrays
        adapter = optimizer.update(adapter, {n: g for n, g in gradient.items() if n.endswith("B")})
    return clipped({n: v for n, v in adapter.minus(release.adapter).items() if n.endswith("B")}, TASK.clip_norm)


async def joined(
    command: list[str], gate: Loopback, folder: Path, *more: str, token: str | None = None, limit_s: float = 60
) -> Any:
    """What the phone's process says, an object a line, or its mistake; its home is ``folder``.

    Raises:
      TimeoutError: it was killed after ``limit_s``.
    """
    (folder / "token").write_text(gate.token("node") if token is None else token)
    options = {
        "bundle": Bundle.open(EMBEDDED).directory,
        "gateway": gate.address.replace("127.0.0.1", "localhost"),  # a name, as the certificate has one
        "token-file": folder / "token",
        "state": folder / "state",
        "lessons": folder / "lessons",
        "longest-wait": 0.2,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    trust = ["--ca", str(gate.authority)] if gate.authority else ["--plaintext"]
    process = await asyncio.create_subprocess_exec(
        *command, *words, *trust, "--json", *more,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(limit_s):
            out, errors = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        return errors.decode()
    return [json.loads(line) for line in out.splitlines()]


def home(folder: Path, lessons: list[Lesson]) -> Path:
    (folder / "lessons").mkdir(parents=True)
    for number, lesson in enumerate(lessons):
        (folder / f"lessons/{number:03}.safetensors").write_bytes(lesson.to_bytes())
    return folder


def test_its_update_is_in_the_mean_as_the_python_devices_is(
    command: list[str], bundle: Bundle, release: Release, lessons: list[Lesson], tmp_path: Path
) -> None:
    folder = home(tmp_path / "node", lessons)

    async def play() -> Update:
        async with gateway(tmp_path / "gate", release, table(2, tls=True)) as gate:
            answer = await gate.ask(TASK)
            async with gate.phone("ann", device_of(release, 1e-4), base=bundle.base) as phone:
                assert (await phone.visit()).outcome == "ACCEPTED"
            told = await joined(command, gate, folder, "--tasks", "1")
            assert [turn["outcome"] for turn in told] == ["ACCEPTED"]
            return await answer

    update = asyncio.run(play())
    change = expected_change(bundle, release, lessons)
    python = device_of(release, 1e-4).train(TASK, release).delta
    assert l2_norm(change) == pytest.approx(TASK.clip_norm, rel=1e-5)
    for name, value in update.delta.items():
        np.testing.assert_allclose(value, (change[name] + python[name]) / 2, atol=TOLERANCE, rtol=0, err_msg=name)
    assert update.training.steps == 2
    assert update.training.positions == sum(lesson.rows for lesson in lessons)
    kept = (folder / f"state/releases/{release.adapter.digest}.safetensors").read_bytes()
    assert release.adapter.layout.read(kept).digest == release.adapter.digest


def test_killed_at_any_moment_it_answers_once_and_its_update_counts_once(
    command: list[str], bundle: Bundle, release: Release, lessons: list[Lesson], tmp_path: Path
) -> None:
    folder = home(tmp_path / "node", lessons)

    async def play() -> Update:
        async with gateway(tmp_path / "gate", release, table(1, tls=True)) as gate:
            answer, token, limit_s, kills = await gate.ask(TASK), gate.token("node"), 0.3, 0
            while not answer.done():
                try:
                    await joined(command, gate, folder, "--tasks", "1", token=token, limit_s=limit_s)
                except TimeoutError:
                    limit_s, kills = 1.3 * limit_s, kills + 1
            assert kills
            return await answer

    update = asyncio.run(play())
    assert update.devices == 1
    for name, value in expected_change(bundle, release, lessons).items():
        np.testing.assert_allclose(update.delta[name], value, atol=TOLERANCE, rtol=0, err_msg=name)


def test_an_evaluation_is_answered_with_nothing_measured(
    command: list[str], release: Release, lessons: list[Lesson], tmp_path: Path
) -> None:
    folder = home(tmp_path / "node", lessons)

    async def play() -> None:
        async with gateway(tmp_path / "gate", release, table(1)) as gate:
            answer = await gate.ask(EvaluateTask(round=1, seed=7, timeout_s=60))
            told = await joined(command, gate, folder, "--tasks", "1")
            assert [turn["outcome"] for turn in told] == ["ACCEPTED"]
            assert (await answer).counters.drafted == 0

    asyncio.run(play())


def test_a_wrong_token_is_told_in_one_line(
    command: list[str], release: Release, lessons: list[Lesson], tmp_path: Path
) -> None:
    folder = home(tmp_path / "node", lessons)

    async def play() -> None:
        async with gateway(tmp_path / "gate", release, table(1, tls=True)) as gate:
            told = await joined(command, gate, folder, token="wrong")
            assert told.startswith("error: the gateway refused: UNAUTHENTICATED: no valid token")
            assert told.count("\n") == 1
            assert not gate.open.tokens.listed()

    asyncio.run(play())
