"""Secure aggregation, both sides: the sum is the plain sum, or there is none and no single vector either."""

import os
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import pytest

from fleetdraft.client.secagg import SecAggClient
from fleetdraft.common.errors import ConfigError, SecAggError, UpdateRejected
from fleetdraft.common.fixed_point import FixedPoint
from fleetdraft.common.secagg import MaskedInput, Revealed, ring
from fleetdraft.server.privacy.config import SecAggConfig
from fleetdraft.server.privacy.secagg import SecAggServer

ENTRIES = 50
CLIENTS = 10
THRESHOLD = 5
"""0.55 of nine neighbours."""
STAGES = ("setup", "share", "mask", "unmask")
Silent = Mapping[str, Collection[int]]


class Cohort:
    """Clients with random vectors of norm 1 and their server; those who are silent at a stage do not answer from it."""

    def __init__(self, silent: Silent | None = None, clients: int = CLIENTS, neighbours: int = 32) -> None:
        self.silent = silent or {}
        rng = np.random.default_rng(clients)
        self.vectors = rng.normal(size=(clients, ENTRIES))
        self.vectors /= np.linalg.norm(self.vectors, axis=1, keepdims=True)
        self.encoding = FixedPoint.finest(clip_norm=1.0, clients=clients, entries=ENTRIES)
        self.server = SecAggServer(
            SecAggConfig(neighbours=neighbours, threshold=0.55),
            clients=clients,
            encoding=self.encoding,
            session=os.urandom(16),
            rng=rng,
        )
        self.clients: list[SecAggClient] = []

    def answers(self, stage: str, client: int) -> bool:
        return client not in self.silent.get(stage, ())

    def join(self) -> None:
        for setup in self.server.setups():
            client, keys = SecAggClient.join(setup, least_threshold=2)
            self.clients.append(client)
            if self.answers("setup", setup.index):
                self.server.take_keys(setup.index, keys)

    def share(self) -> None:
        for i, keys in self.server.peer_keys().items():
            if self.answers("share", i):
                self.server.take_shares(i, self.clients[i].share(keys))

    def mask(self) -> None:
        for i, inbox in self.server.inboxes().items():
            if self.answers("mask", i):
                self.server.take_masked(i, self.clients[i].mask(inbox, self.vectors[i]))

    def unmask(self) -> None:
        for i, request in self.server.unmask_requests().items():
            if self.answers("unmask", i):
                self.server.take_revealed(i, self.clients[i].unmask(request))

    def until(self, last: str) -> "Cohort":
        for stage in STAGES[: STAGES.index(last) + 1]:
            getattr(self, "join" if stage == "setup" else stage)()
        return self

    def check_total(self) -> None:
        survivors = self.server.survivors
        plain = self.vectors[list(survivors)].sum(axis=0)
        error = np.abs(self.server.total() - plain).max()
        assert error <= len(survivors) * self.encoding.step / 2 * (1 + 1e-6)  # 1e-6: float64 rounding of the plain sum


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("silent", [(), (4,), (0, 4, 9)], ids=["0%", "10%", "30%"])
def test_the_sum_is_the_plain_sum_within_the_step_whoever_drops_out(stage, silent) -> None:
    cohort = Cohort({stage: silent}).until("unmask")
    lost = set() if stage == "unmask" else set(silent)
    assert cohort.server.survivors == tuple(i for i in range(CLIENTS) if i not in lost)
    cohort.check_total()


def test_the_sum_is_right_with_drop_outs_at_every_stage_of_a_sparse_graph() -> None:
    cohort = Cohort({"setup": [3], "share": [15], "mask": [8, 20], "unmask": [1]}, clients=24, neighbours=14)
    cohort.until("unmask").check_total()
    assert len(cohort.server.survivors) == 20


@pytest.mark.parametrize("stage", STAGES)
def test_the_threshold_is_enough_and_one_client_fewer_ends_the_round(stage) -> None:
    most = CLIENTS - THRESHOLD - 1  # a client and as many neighbours as the threshold are left
    Cohort({stage: range(most)}).until("unmask").check_total()
    with pytest.raises(SecAggError, match=f"ended at stage '{stage}': 5 of 10 .* no update was revealed"):
        Cohort({stage: range(most + 1)}).until("unmask").server.total()


@pytest.mark.parametrize("stage", STAGES)
def test_one_client_with_too_few_neighbours_ends_the_round_of_a_sparse_graph(stage) -> None:
    """Each has six and needs four, so that many others are left when three of one client's are gone."""
    of_client_0 = Cohort(clients=24, neighbours=6).server.setups()[0].neighbours
    with pytest.raises(SecAggError, match=f"ended at stage '{stage}': 3 neighbours of client 0 are left"):
        Cohort({stage: of_client_0[:3]}, clients=24, neighbours=6).until("unmask").server.total()


@pytest.mark.parametrize("stage", STAGES[:3])
def test_no_client_is_asked_for_secrets_once_too_few_are_left(stage) -> None:
    cohort = Cohort({stage: range(5)})
    with pytest.raises(SecAggError):
        cohort.until("unmask")
    assert all(client.secrets.stage != "done" for client in cohort.clients)  # which the last question makes them


def test_survivors_in_separate_groups_end_the_round() -> None:
    """Their sums would come out one by one."""
    cohort = Cohort(clients=24, neighbours=2).until("share")
    cohort.server._neighbours = [tuple(j for j in range(24) if j != i and j // 12 == i // 12) for i in range(24)]
    cohort.server._arrived = set(range(24))
    with pytest.raises(SecAggError, match="fall into groups, one of 12"):
        cohort.server.unmask_requests()


def chi_square(data: bytes) -> float:
    """Of the bytes' frequencies; for uniform ones 255 on average, with a standard deviation of 22.6."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    expected = len(data) / 256
    return float(np.square(counts - expected).sum() / expected)


def test_a_masked_vector_looks_uniform_and_changes_with_each_round() -> None:
    def masked_bytes() -> np.ndarray:
        cohort = Cohort(clients=4).until("share")
        inbox = cohort.server.inboxes()[0]
        client = cohort.clients[0]
        client.setup = replace(client.setup, entries=20_000)
        return np.frombuffer(client.mask(inbox, np.full(20_000, 1e-3)).masked, "<u4")

    first, second = masked_bytes(), masked_bytes()
    assert chi_square(first.tobytes()) < 255 + 8 * 22.6
    assert chi_square((first - second).tobytes()) < 255 + 8 * 22.6  # so the two have nothing in common


def test_keys_and_seeds_are_new_in_every_round() -> None:
    first, second = Cohort().until("share"), Cohort().until("share")
    secrets = [c.secrets for cohort in (first, second) for c in cohort.clients]
    assert len({s for one in secrets for s in (one.channel_key, one.masking_key, one.seed)}) == 3 * len(secrets)


def test_an_answer_counts_once_and_from_those_who_were_asked() -> None:
    cohort = Cohort({"setup": [9], "share": [8], "mask": [7]}).until("mask")
    server = cohort.server
    vector = MaskedInput(masked=bytes(4 * ENTRIES))
    for client, reason in ((0, "answered twice"), (8, "was not asked"), (9, "was not asked"), (77, "was not asked")):
        with pytest.raises(UpdateRejected, match=reason):
            server.take_masked(client, vector)
    with pytest.raises(UpdateRejected, match="has 4 bytes, expected 200"):
        server.take_masked(7, MaskedInput(masked=bytes(4)))
    cohort.unmask()
    cohort.check_total()


def test_a_client_cannot_pass_as_another_by_its_key() -> None:
    cohort = Cohort()
    _, keys = SecAggClient.join(cohort.server.setups()[0], least_threshold=2)
    cohort.server.take_keys(0, keys)
    with pytest.raises(UpdateRejected, match="the same as another"):
        cohort.server.take_keys(1, keys)


def test_shares_that_were_dealt_to_another_client_are_refused() -> None:
    cohort = Cohort().until("mask")
    requests = cohort.server.unmask_requests()
    one, other = (cohort.clients[i].unmask(requests[i]) for i in (0, 1))
    with pytest.raises(UpdateRejected, match="not those that were dealt"):
        cohort.server.take_revealed(0, other)
    with pytest.raises(UpdateRejected, match="not those that were dealt"):
        cohort.server.take_revealed(0, Revealed(seed_shares=one.seed_shares[:-1], key_shares=one.key_shares))
    cohort.server.take_revealed(0, one)


@pytest.mark.parametrize(("kind", "silent"), [("seed", ()), ("key", (9,))])
def test_a_forged_share_ends_the_round_and_gives_no_wrong_sum(kind, silent) -> None:
    cohort = Cohort({"mask": silent}).until("mask")
    for i, request in cohort.server.unmask_requests().items():
        shares = cohort.clients[i].unmask(request)
        if i == 0:
            column = getattr(shares, f"{kind}_shares")
            forged = column[0][:4] + bytes([column[0][4] ^ 1]) + column[0][5:]
            shares = replace(shares, **{f"{kind}_shares": (forged, *column[1:])})
        cohort.server.take_revealed(i, shares)
    with pytest.raises(SecAggError, match="forged|do not combine"):
        cohort.server.total()


def test_a_server_for_more_clients_than_the_encoding_holds_is_an_error() -> None:
    encoding = FixedPoint.finest(clip_norm=1.0, clients=3, entries=2)
    with pytest.raises(ConfigError, match="4 clients, expected at most the encoding's 3"):
        SecAggServer(SecAggConfig(), clients=4, encoding=encoding, session=b"s", rng=np.random.default_rng(0))


@pytest.mark.parametrize("clients", [0, 1, 2])
def test_too_few_devices_to_hide_one_another_end_the_round_before_it_begins(clients) -> None:
    encoding = FixedPoint.finest(clip_norm=1.0, clients=3, entries=2)
    with pytest.raises(SecAggError, match=f"{clients} devices take part .* expected at least 3"):
        SecAggServer(SecAggConfig(), clients=clients, encoding=encoding, session=b"s", rng=np.random.default_rng(0))


@pytest.mark.parametrize(("clients", "degree"), [(30, 6), (7, 6), (4, 32)])
def test_neighbours_are_mutual_and_as_many_as_asked(clients, degree) -> None:
    neighbours = ring(clients, degree, np.random.default_rng(0))
    assert {len(set(peers) - {i}) for i, peers in enumerate(neighbours)} == {min(degree, clients - 1)}
    assert all(i in neighbours[j] for i, peers in enumerate(neighbours) for j in peers)
