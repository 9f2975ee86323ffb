"""Asynchronous rounds: nobody waits for the slow, and what started earlier counts less."""

from dataclasses import replace

import numpy as np
import pytest
from local_grid import answering, begun, config_of, play

from fleetdraft.client.app import make_client_app
from fleetdraft.client.device import TableDevice
from fleetdraft.common.errors import ConfigError, Reason
from fleetdraft.common.messages import Identity, clipped
from fleetdraft.common.records import decode_train
from fleetdraft.server.aggregation.rules import RULES
from fleetdraft.server.resumption import journal_of

pytestmark = [pytest.mark.usefixtures("identity"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

NAME = "lora.0.q_proj.A"


def play_async(registry, apps, delays=None, **settings):
    return play(registry, apps, delays, **({"mode": "async", "buffer_size": 2, "timeout_s": 10.0} | settings))


def moved(registry, release: int) -> float:
    """How far release ``release`` is from the one before; the same for every entry."""
    history = registry.history()
    before, after = (registry.read(history[number]).adapter for number in (release - 1, release))
    return float(after.minus(before)[NAME][0, 0])


def test_a_release_comes_after_every_so_many_updates_while_a_slow_device_still_works(registry, app_of) -> None:
    reports, grid = play_async(registry, [app_of("ann"), app_of("bob")], {101: 10**6}, rounds=3, timeout_s=60.0)
    assert [report.accepted for report in reports] == [("ann", "ann")] * 3
    assert [report.release for report in reports] == [1, 2, 3]
    assert grid.asked.count(101) == 1


def test_an_update_counts_by_one_over_the_root_of_one_more_than_the_releases_it_is_behind(registry, app_of) -> None:
    """Bob starts from release 0 and answers when release 2 is out; ann is always up to date."""
    apps, delays = [app_of("ann", 0.01, weight=4), app_of("bob", 0.05, weight=4)], {100: 1, 101: 8}
    reports, _ = play_async(registry, apps, delays, rounds=8, clip_norm=100.0)
    late = next(report for report in reports if report.stale)
    assert (late.release, late.accepted) == (3, ("ann", "bob"))
    discount = 1 / np.sqrt(1 + 2)
    expected = (0.01 + discount * 0.05) / (1 + discount)
    assert moved(registry, 3) == pytest.approx(expected, abs=1e-7)


def test_an_update_that_is_too_far_behind_is_stale(registry, app_of) -> None:
    apps, delays = [app_of("ann"), app_of("bob", 0.05)], {100: 1, 101: 5}
    reports, _ = play_async(registry, apps, delays, rounds=8, max_staleness=0, buffer_size=1)
    late = next(report for report in reports if report.codes)
    assert late.codes == {"bob": Reason.STALE}
    assert late.excluded["bob"] == f"starts {late.release - 1} releases behind, expected at most max_staleness = 0"
    assert all(report.stale == 0 for report in reports)


def test_a_device_learns_from_other_prompts_each_time_it_is_asked(registry, app_of) -> None:
    tasks = []

    def watched(message, context):
        if message.metadata.message_type == "train":
            tasks.append(decode_train(message.content)[0].round)
        return app(message, context)

    app = app_of("ann")
    play_async(registry, [watched], rounds=2, buffer_size=3)
    play_async(registry, [watched], rounds=3, buffer_size=3)
    assert tasks == list(range(1, 10))


def test_a_device_that_fails_is_asked_once_a_round(registry, app_of) -> None:
    apps = [app_of("ann"), app_of("eve", weight=0.0)]
    reports, grid = play_async(registry, apps, {100: 1}, rounds=3, buffer_size=3)
    assert grid.asked.count(101) == 3
    assert [report.counts for report in reports] == [{Reason.WEIGHT: 1}] * 3


def test_a_round_without_enough_updates_ends_with_its_time(registry, app_of) -> None:
    apps = [answering(app_of(name), "train", lambda message: None) for name in ("ann", "bob")]
    reports, _ = play_async(registry, apps, rounds=2, timeout_s=0.3)
    assert [report.released for report in reports] == [False, False]
    assert [report.counts for report in reports] == [{Reason.SILENT: 2}] * 2
    assert all(report.seconds < 5 for report in reports)


def test_a_round_with_nobody_left_to_ask_ends_at_once(registry, app_of) -> None:
    (report,), _ = play_async(registry, [app_of("eve", weight=0.0)], timeout_s=60.0)
    assert report.seconds < 20
    assert not report.released


def test_no_more_devices_work_at_a_time_than_are_set(registry, app_of) -> None:
    apps = [app_of(f"device {number}") for number in range(6)]
    delays = dict.fromkeys(range(100, 106), 1)
    (report,), grid = play_async(registry, apps, delays, clients_per_round=2, buffer_size=2)
    assert 2 <= len(grid.asked) <= 3
    assert len(report.accepted) == 2


def test_who_is_asked_is_drawn_by_the_seed(tmp_path, layout, app_of) -> None:
    def asked(seed: int, folder: str) -> list[int]:
        apps = [app_of(f"device {number}") for number in range(6)]
        settings = {"clients_per_round": 1, "buffer_size": 4, "seed": seed}
        return play_async(begun(tmp_path / folder, layout), apps, **settings)[1].asked

    assert asked(1, "a") == asked(1, "b") != asked(2, "c")


def test_a_killed_server_goes_on_with_the_updates_of_its_buffer(registry, app_of) -> None:
    class Killed(BaseException):
        pass

    answered = []

    def mortal(message, context):
        if message.metadata.message_type == "train":
            answered.append(message)
            if len(answered) == 3:
                raise Killed
        return app(message, context)

    app, before = app_of("ann", 0.01), registry.head().adapter
    with pytest.raises(Killed):
        play_async(registry, [mortal], buffer_size=3)
    assert journal_of(registry).load().report.accepted == ("ann",)
    (report,), _ = play_async(registry, [app_of("bob", 0.04)], buffer_size=3)
    assert report.accepted == ("ann", "bob", "bob")
    np.testing.assert_allclose(registry.head().adapter.minus(before)[NAME], 0.03, atol=1e-7)


def test_a_release_that_is_not_in_the_line_is_refused(registry, layout) -> None:
    class Stranger(TableDevice):
        def train(self, task, release):
            return replace(super().train(task, release), release="elsewhere")

    device = Stranger(client="eve", family="spm", weight=1.0, change=clipped(layout.initial(0).arrays, 0.1))
    app = make_client_app(device_for=lambda c: device, identity_for=lambda c: Identity(client="eve", family="spm"))
    (report,), _ = play_async(registry, [app])
    assert report.codes == {"eve": Reason.FINGERPRINT}


@pytest.mark.parametrize("rule", [name for name in RULES if name not in ("fedit", "ffa-lora")])
def test_a_rule_to_which_an_old_update_means_something_else_is_refused(rule) -> None:
    weights = "tokens" if RULES[rule].weighs else "equal"
    with pytest.raises(ConfigError, match=f"rule is '{rule}', expected in mode 'async' one of fedit, ffa-lora"):
        config_of(1, mode="async", rule=rule, weights=weights, min_updates=20, buffer_size=20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"secure_aggregation": True}, "secure_aggregation is True, expected false in mode 'async'"),
        ({"over_selection": 0.3}, "over_selection is 0.3, expected 0 in mode 'async'"),
        ({"buffer_size": 2, "min_updates": 3}, "buffer_size is 2, expected at least min_updates = 3"),
        ({"mode": "lazy"}, "mode is 'lazy', expected sync or async"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(1, **({"mode": "async"} | settings))
