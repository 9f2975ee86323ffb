"""A server killed at any moment goes on in the round it was in, and nothing that it took in is lost."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from local_grid import answering, begun, play

from fleetdraft.common.errors import ConfigError, Reason, RegistryError
from fleetdraft.common.records import decode_train
from fleetdraft.server.app import next_round
from fleetdraft.server.config import ServerConfig
from fleetdraft.server.registry.registry import Registry
from fleetdraft.server.resumption import journal_of
from fleetdraft.server.round_journal import Stage

pytestmark = [pytest.mark.usefixtures("identity"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

NAMES = ("ann", "bob", "cyd")


class Killed(BaseException):
    """Nothing handles it, as nothing handles a kill."""


@contextmanager
def killed_at(write: int, done: bool, patch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Everything ends at the given write of a file, counted from 0, just before or just after it is in its place."""
    replace, count = os.replace, [0]

    def replacing(*args: object) -> None:
        count[0] += 1
        if count[0] == write + 1:
            if done:
                replace(*args)
            raise Killed
        replace(*args)

    with patch.context() as inner:
        inner.setattr(os, "replace", replacing)
        yield count


class Fleet:
    """Three devices; remembers who was asked to train in which round."""

    def __init__(self, app_of: Callable, evil: bool = False) -> None:
        self.asked: list[tuple[int, str]] = []
        self.apps = [self._watched(name, app_of(name, 0.01 * (place + 1))) for place, name in enumerate(NAMES)]
        if evil:
            self.apps.append(self._watched("eve", app_of("eve", weight=0.0)))

    def _watched(self, name: str, app: Callable) -> Callable:
        def answer(message, context):
            if message.metadata.message_type == "train":
                self.asked.append((decode_train(message.content)[0].round, name))
            return app(message, context)

        return answer


SETTINGS = {"rounds": 2, "evaluate_every": 1}


def releases(registry: Registry) -> list[tuple[str, int, tuple[str, ...]]]:
    return [(lineage.digest, lineage.round, lineage.participants) for lineage in registry.history()]


@pytest.mark.parametrize("rule", ["fedit", "median"])
@pytest.mark.parametrize("done", [False, True])
def test_killed_at_any_write_a_run_ends_as_if_it_had_not_been(
    tmp_path, layout, app_of, monkeypatch, rule, done
) -> None:
    """Writes of two rounds from the first to the last; the run that goes on asks nobody who had answered."""
    settings = SETTINGS | {"rule": rule, "weights": "equal", "min_updates": 3}
    whole, fleet = begun(tmp_path / "whole", layout), Fleet(app_of, evil=True)
    with killed_at(10**6, done, monkeypatch) as writes:
        reports, _ = play(whole, fleet.apps, **settings)
    for write in range(2 * int(done), writes[0], 6 if rule == "median" else 5):
        registry, fleet = begun(tmp_path / f"{write}", layout), Fleet(app_of, evil=True)
        with killed_at(write, done, monkeypatch), pytest.raises(Killed):
            play(registry, fleet.apps, **settings)
        entry = journal_of(registry).load()
        fleet.asked.clear()
        after, _ = play(registry, fleet.apps, **settings)
        assert releases(registry) == releases(whole), write
        if entry is not None:
            known = {*entry.report.accepted, *entry.report.excluded}
            assert not {(entry.report.round, name) for name in known} & {*fleet.asked}, write
        for report in after:
            (same,) = (other for other in reports if other.round == report.round)
            for figure in ("accepted", "excluded", "counts", "families", "evaluation", "evaluated", "participants"):
                assert getattr(report, figure) == getattr(same, figure), (write, figure)


def stopped_after(updates: int, tmp_path, layout, app_of, monkeypatch, **settings) -> tuple[Registry, Fleet]:
    """A run that was killed in its first round with so many updates taken in."""
    registry, fleet = begun(tmp_path / "run", layout), Fleet(app_of)
    for write in range(100):
        with killed_at(write, True, monkeypatch), pytest.raises(Killed):
            play(registry, fleet.apps, **settings)
        entry = journal_of(registry).load()
        if entry is not None and len(entry.report.accepted) == updates:
            fleet.asked.clear()
            return registry, fleet
        registry = begun(tmp_path / f"run {write}", layout)
    raise AssertionError


def test_only_devices_that_had_not_answered_are_asked_again(tmp_path, layout, app_of, monkeypatch) -> None:
    registry, fleet = stopped_after(2, tmp_path, layout, app_of, monkeypatch)
    (report,), _ = play(registry, fleet.apps)
    assert fleet.asked == [(1, "cyd")]
    assert report.accepted == NAMES
    assert registry.lineage().participants == NAMES


def test_a_device_that_is_gone_when_the_server_goes_on_does_not_hold_the_round(
    tmp_path, layout, app_of, monkeypatch
) -> None:
    registry, fleet = stopped_after(2, tmp_path, layout, app_of, monkeypatch)
    (report,), _ = play(registry, fleet.apps[:2])
    assert (report.accepted, report.codes) == (("ann", "bob"), {"cyd": Reason.SILENT})


def test_a_round_that_was_full_asks_nobody(tmp_path, layout, app_of, monkeypatch) -> None:
    settings = {"clients_per_round": 2, "over_selection": 0.5}
    registry, fleet = stopped_after(2, tmp_path, layout, app_of, monkeypatch, **settings)
    (report,), _ = play(registry, fleet.apps, **settings)
    assert fleet.asked == []
    assert (len(report.accepted), report.counts) == (2, {Reason.LATE: 1})


def test_rounds_without_a_release_are_not_done_again(registry, app_of) -> None:
    silent = answering(app_of("eve"), "train", lambda message: None)
    play(registry, [silent], rounds=2, timeout_s=0.2)
    reports, _ = play(registry, [silent], rounds=3, timeout_s=0.2)
    assert [report.round for report in reports] == [3]


def test_a_head_that_was_changed_begins_the_round_anew(tmp_path, layout, app_of, monkeypatch) -> None:
    """Sums of changes of one release mean nothing beside another."""
    registry, fleet = stopped_after(2, tmp_path, layout, app_of, monkeypatch)
    other = layout.initial(seed=5)
    registry.write(other, round=0, rule="fedit", participants=(), rejected={}, families={})
    (report,), _ = play(registry, fleet.apps)
    assert sorted(fleet.asked) == [(1, name) for name in NAMES]
    np.testing.assert_allclose(registry.head().adapter.minus(other)["lora.0.q_proj.A"], 0.02, atol=1e-7)
    assert report.accepted == NAMES


def test_a_round_is_finished_with_the_settings_it_was_begun_with(tmp_path, layout, app_of, monkeypatch) -> None:
    registry, fleet = stopped_after(2, tmp_path, layout, app_of, monkeypatch)
    with pytest.raises(ConfigError, match="round 1 was begun with rule = 'fedit', now it is 'ffa-lora'; finish"):
        play(registry, fleet.apps, rule="ffa-lora")


def test_a_damaged_journal_is_an_error_of_one_line(tmp_path, layout, app_of, monkeypatch) -> None:
    registry, fleet = stopped_after(2, tmp_path, layout, app_of, monkeypatch)
    folder = journal_of(registry).folder
    array = max(folder.glob("*.npy"))
    array.write_bytes(array.read_bytes()[:100])
    with pytest.raises(RegistryError, match=r"round.json is damaged .*remove .* to begin the round anew"):
        play(registry, fleet.apps)
    for path in folder.iterdir():
        path.unlink()
    (report,), _ = play(registry, fleet.apps)
    assert report.accepted == NAMES


def test_what_single_devices_sent_is_for_the_servers_user_alone(tmp_path, layout, app_of, monkeypatch) -> None:
    settings = {"rule": "median", "weights": "equal", "min_updates": 3}
    registry, _ = stopped_after(2, tmp_path, layout, app_of, monkeypatch, **settings)
    folder = journal_of(registry).folder
    files = list(folder.iterdir())
    assert len(files) >= 3
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_nothing_of_the_updates_stays_once_the_round_is_closed(registry, app_of) -> None:
    play(registry, [app_of(name) for name in NAMES], rule="median", weights="equal", min_updates=3)
    journal = journal_of(registry)
    assert [path.name for path in journal.folder.iterdir()] == ["round.json"]
    assert journal.load().stage == Stage.CLOSED


def test_the_next_round_is_known_without_a_fleet(registry, app_of) -> None:
    config = ServerConfig(rounds=2)
    assert next_round(config, registry) == 1
    play(registry, [app_of("ann")], rounds=2)
    assert next_round(config, registry) == 3
