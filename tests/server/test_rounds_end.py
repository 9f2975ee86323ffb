"""Chaos: whatever devices answer, each round ends within its time, with the right counts and reason codes."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Error, Message
from local_grid import App, answering, begun, play

from fleetdraft.common.errors import Reason
from fleetdraft.common.messages import Identity, Update
from fleetdraft.common.records import decode_update, encode_update

pytestmark = [pytest.mark.usefixtures("identity"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

TIMEOUT_S = 1.0
NAME = "lora.0.q_proj.A"


def altered(app: App, change: Callable[[Update], Update]) -> App:
    """``app``, but its updates are altered on their way."""

    def answer(message: Message, context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type != "train":
            return reply
        update = decode_update(reply.content, Identity(client="x", family="spm"))
        return Message(encode_update(change(update)), reply_to=message)

    return answer


def scaled(update: Update, factor: float) -> Update:
    return replace(update, delta={name: value * np.float32(factor) for name, value in update.delta.items()})


def grown(update: Update) -> Update:
    """Every factor has one rank more."""
    return replace(
        update,
        delta={
            name: np.pad(value, ((0, 1), (0, 0)) if name.endswith(".A") else ((0, 0), (0, 1)))
            for name, value in update.delta.items()
        },
    )


#: What a device does to its update, and the code by which it is counted.
CHAOS: dict[str, tuple[Callable[[Update], Update], Reason]] = {
    "nan": (lambda u: replace(u, delta={**u.delta, NAME: np.full_like(u.delta[NAME], np.nan)}), Reason.NOT_FINITE),
    "infinite": (lambda u: replace(u, delta={**u.delta, NAME: np.full_like(u.delta[NAME], np.inf)}), Reason.NOT_FINITE),
    "wrong rank": (grown, Reason.RANK),
    "wrong base": (lambda u: replace(u, base="elsewhere"), Reason.FINGERPRINT),
    "wrong layout": (lambda u: replace(u, layout="elsewhere"), Reason.FINGERPRINT),
    "wrong release": (lambda u: replace(u, release="elsewhere"), Reason.FINGERPRINT),
    "100 times the norm": (lambda u: scaled(u, 100), Reason.NORM),
    "zero examples": (lambda u: replace(u, weight=0.0), Reason.WEIGHT),
    "a tensor less": (lambda u: replace(u, delta={NAME: u.delta[NAME]}), Reason.MALFORMED),
}


def of_train(app: App, reply: Callable[[Message], Message | None]) -> App:
    return answering(app, "train", reply)


@pytest.mark.parametrize("kind", CHAOS)
def test_an_update_that_must_not_count_is_counted_by_its_code(registry, app_of, kind) -> None:
    change, code = CHAOS[kind]
    (report,), _ = play(registry, [app_of("ann"), altered(app_of("eve"), change)], clip_norm=1.0)
    assert (report.accepted, report.codes, report.counts) == (("ann",), {"eve": code}, {code: 1})
    assert report.released


def test_all_at_once_the_round_ends_in_time_as_if_only_the_sound_had_been_there(tmp_path, layout, app_of) -> None:
    bad = [altered(app_of(f"bad {kind}"), change) for kind, (change, _) in CHAOS.items()]
    silent = of_train(app_of("silent"), lambda message: None)
    failing = of_train(app_of("failing"), lambda message: Message(Error(code=2, reason="no"), reply_to=message))
    sound = [app_of("ann", 0.01), app_of("bob", 0.02)]
    chaos, calm = begun(tmp_path / "chaos", layout), begun(tmp_path / "calm", layout)
    started = time.monotonic()
    (report,), _ = play(chaos, [*bad, silent, *sound, failing], clip_norm=1.0, timeout_s=TIMEOUT_S)
    assert time.monotonic() - started < TIMEOUT_S + 4  # a loaded machine may be slow; waiting for ever may not
    play(calm, sound, clip_norm=1.0)
    assert chaos.head().adapter.digest == calm.head().adapter.digest
    assert report.accepted == ("ann", "bob")
    assert report.counts == {
        "device-error": 1, "malformed": 1, "norm": 1, "not-finite": 2, "rank": 1, "silent": 1, "weight": 1,
        "wrong-fingerprint": 3,
    }  # fmt: skip
    assert sum(report.counts.values()) + len(report.accepted) == len(report.participants) == 13


def test_nobody_sound_keeps_the_old_release(registry, app_of) -> None:
    (report,), _ = play(registry, [altered(app_of(name), lambda u: replace(u, weight=0.0)) for name in ("eve", "mal")])
    assert (report.released, report.release, report.counts) == (False, 0, {Reason.WEIGHT: 2})


def test_one_participant_alone_makes_a_release(registry, app_of) -> None:
    before = registry.head().adapter
    (report,), _ = play(registry, [app_of("ann", 0.01)])
    assert (report.accepted, report.counts) == (("ann",), {})
    np.testing.assert_allclose(registry.head().adapter.minus(before)[NAME], 0.01, atol=1e-7)


def test_a_second_answer_counts_neither_for_nor_against_its_sender(tmp_path, layout, app_of) -> None:
    def twice(app: App) -> App:
        def answer(message, context):
            reply = app(message, context)
            return (reply, reply) if message.metadata.message_type == "train" else reply

        return answer

    once, again = begun(tmp_path / "once", layout), begun(tmp_path / "again", layout)
    play(once, [app_of("ann", 0.01), app_of("bob", 0.03)])
    (report,), _ = play(again, [twice(app_of("ann", 0.01)), app_of("bob", 0.03)])
    assert (report.accepted, report.excluded, report.counts) == (("ann", "bob"), {}, {Reason.DUPLICATE: 1})
    assert again.head().adapter.digest == once.head().adapter.digest


def test_a_round_closes_with_the_first_updates_and_the_others_are_late(registry, app_of) -> None:
    apps = [app_of(name) for name in ("ann", "bob", "cyd", "dan")]
    delays = {101: 10**6, 103: 10**6}  # bob and dan
    started = time.monotonic()
    settings = {"clients_per_round": 2, "over_selection": 1.0, "timeout_s": 60.0}
    (report,), grid = play(registry, apps, delays, **settings)
    assert time.monotonic() - started < 20
    assert len(grid.asked) == 4
    assert report.accepted == ("ann", "cyd")
    assert report.codes == {"bob": Reason.LATE, "dan": Reason.LATE}
    assert report.excluded["bob"] == "the round closed with 2 updates before this device answered"


@pytest.mark.parametrize(("count", "share", "asked"), [(10, 0.3, 13), (3, 0.5, 5), (3, 0.0, 3), (7, 0.1, 8)])
def test_over_selection_asks_the_share_more_rounded_up(registry, app_of, count, share, asked) -> None:
    apps = [app_of(f"device {number}") for number in range(15)]
    (report,), grid = play(registry, apps, clients_per_round=count, over_selection=share)
    assert (len(grid.asked), len(report.accepted)) == (asked, count)
    assert len(report.participants) == asked


def test_an_answer_after_the_end_disturbs_no_later_round(registry, app_of) -> None:
    apps, delays = [app_of("ann", 0.01), app_of("bob", 0.5)], {101: 8}
    reports, _ = play(registry, apps, delays, rounds=3, timeout_s=0.4)
    assert [report.accepted for report in reports] == [("ann",)] * 3
    assert [report.codes for report in reports] == [{"bob": Reason.SILENT}] * 3


def failing_at_first(app: App, times: int, code: int) -> App:
    """``app``, but its first answers to training say that the transport failed."""
    left = [times]

    def answer(message, context):
        if message.metadata.message_type == "train" and left[0]:
            left[0] -= 1
            return Message(Error(code=code, reason="node unavailable"), reply_to=message)
        return app(message, context)

    return answer


NODE_UNAVAILABLE = 5


def test_a_device_that_the_transport_lost_is_asked_again(registry, app_of) -> None:
    apps = [app_of("ann"), failing_at_first(app_of("bob"), 1, NODE_UNAVAILABLE)]
    (report,), grid = play(registry, apps, timeout_s=10.0)
    assert (report.accepted, report.counts, report.retried) == (("ann", "bob"), {}, 1)
    assert grid.asked == [100, 101, 101]


def test_asking_again_has_an_end(registry, app_of) -> None:
    apps = [app_of("ann"), failing_at_first(app_of("bob"), 9, NODE_UNAVAILABLE)]
    (report,), grid = play(registry, apps, timeout_s=30.0, retries=1)
    assert (report.codes, report.retried) == ({"bob": Reason.TRANSPORT}, 1)
    assert grid.asked == [100, 101, 101]


def test_nobody_is_asked_again_when_there_is_no_time_left(registry, app_of) -> None:
    apps = [app_of("ann"), failing_at_first(app_of("bob"), 9, NODE_UNAVAILABLE)]
    started = time.monotonic()
    (report,), grid = play(registry, apps, timeout_s=0.5, retries=9)
    assert time.monotonic() - started < 5
    assert (report.codes, len(grid.asked)) == ({"bob": Reason.TRANSPORT}, 2)


def test_a_device_that_failed_itself_is_not_asked_again(registry, app_of) -> None:
    apps = [app_of("ann"), failing_at_first(app_of("bob"), 1, code=2)]
    (report,), grid = play(registry, apps, timeout_s=10.0)
    assert (report.codes, report.retried) == ({"bob": Reason.DEVICE_ERROR}, 0)
    assert grid.asked == [100, 101]


def test_a_request_that_cannot_be_sent_costs_its_device_the_round(registry, app_of) -> None:
    (report,), _ = play(registry, [app_of("ann"), app_of("bob")], unreachable=(101,), retries=0)
    assert (report.accepted, report.codes) == (("ann",), {"bob": Reason.TRANSPORT})
    assert report.excluded == {"bob": "the request could not be sent"}
