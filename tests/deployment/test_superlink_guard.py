"""The guard before Flower's SuperLink: which interfaces other machines reach, on Flower's own application."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.superlink import extensions
from flwr.superlink.main import create_app
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.flower import environment
from fleetdraft.server.deployment.fleet import VARIABLE
from fleetdraft.server.deployment.guarded_superlink import HEADER, install
from fleetdraft.server.deployment.setup import make_fleet
from fleetdraft.server.deployment.superlink import Life, in_order

OPERATOR = "/v1/control/list-runs"
DEVICES = "/v1/fleet/activate-node"


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> Iterator[ASGIApp]:
    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)  # put back afterwards
    install()
    yield create_app()


def status(app: ASGIApp, path: str, client: str) -> int:
    answer = TestClient(app, client=(client, 50000), raise_server_exceptions=False).post(path)
    assert answer.headers[HEADER] == "on"
    return answer.status_code


def test_other_machines_reach_what_devices_need_and_nothing_else(flower: ASGIApp) -> None:
    for client in ("10.0.0.7", "2001:db8::1", "::ffff:10.0.0.7", "testclient"):
        assert status(flower, DEVICES, client) != 403
        for path in (OPERATOR, "/v1/control/register-node", "/v1/runtime/acquire-task", "/docs", "/", "//v1/fleet/x"):
            assert status(flower, path, client) == 403, path


def test_the_servers_own_machine_reaches_all(flower: ASGIApp) -> None:
    for client in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        assert status(flower, OPERATOR, client) not in (403, 404)


def test_devices_are_told_to_try_again_until_the_superlink_is_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)  # put back afterwards
    now = [False, False, True]
    install(lambda: now.pop(0))
    guarded = create_app()
    assert [status(guarded, DEVICES, client) for client in ("10.0.0.7", "127.0.0.1")] == [503, 503]
    assert status(guarded, OPERATOR, "127.0.0.1") not in (403, 404, 503)
    assert [status(guarded, DEVICES, "10.0.0.7") != 503 for _ in range(2)] == [True, True]  # asked no more


def test_a_superlink_is_in_order_when_its_own_life_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = make_fleet(tmp_path / "f", bundle=EMBEDDED, host="127.0.0.1", port=9443, names=[], devices=1)
    monkeypatch.setenv(VARIABLE, str(fleet.folder))
    assert not in_order(7)
    for life, expected in [((6, True), False), ((7, False), False), ((7, True), True)]:
        Life(pid=life[0], started=1.0, in_order=life[1]).keep(fleet)
        assert in_order(7) is expected


def test_a_path_that_climbs_out_of_the_devices_part_finds_no_operator(flower: ASGIApp) -> None:
    """The guard lets pass what begins as the devices' part does: that is safe as long as Flower resolves no dots."""
    assert status(flower, "/v1/fleet/%2e%2e/control/list-runs", "10.0.0.7") == 404
    assert status(flower, "/V1/CONTROL/LIST-RUNS", "10.0.0.7") == 403


def test_who_asks_is_believed_of_this_machine_only_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """uvicorn's variable; "*" would let every peer call itself 127.0.0.1."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    monkeypatch.setenv("FLWR_INTERNAL_GRPC_CONTROL_API", "1")
    made = environment(tmp_path)
    assert (made["FORWARDED_ALLOW_IPS"], made["FLWR_INTERNAL_GRPC_CONTROL_API"]) == ("127.0.0.1", "0")
