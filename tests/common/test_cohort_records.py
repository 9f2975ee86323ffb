"""A gateway's answer on the wire: a device's answer with what it stands for beside it, and old messages as before."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fleetdraft.common.errors import ConfigError, UpdateRejected
from fleetdraft.common.lora import LoraLayout
from fleetdraft.common.messages import (
    Cohort,
    Evaluation,
    Identity,
    Release,
    SumTerms,
    TrainCounters,
    TrainTask,
    Update,
)
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.common.records import (
    MAX_COUNTER,
    MAX_FAMILIES,
    decode_evaluation,
    decode_terms,
    decode_train,
    decode_update,
    encode_evaluation,
    encode_request,
    encode_update,
)
from fleetdraft.common.shape import DecoderShape

GATE = Identity(client="gate", family="gateway")
SHAPE = DecoderShape(
    vocab_size=32, hidden_size=8, layers=1, heads=2, kv_heads=1, head_dim=4, intermediate_size=12,
    context_limit=64, rope_theta=10000.0, rms_eps=1e-5, tied=True,
)  # fmt: skip
RELEASE = Release(number=3, adapter=LoraLayout(rank=2, alpha=4, shape=SHAPE).initial(seed=0), base="base")
TASK = TrainTask(round=1, seed=0)
FAMILIES = {"bpe": DraftCounters(prompts=1, drafted=10, accepted=4, blocks=3), "spm": DraftCounters(prompts=2)}
COHORT = Cohort(devices=3, families=FAMILIES)
UPDATE = Update(
    client="gate",
    family="gateway",
    base="base",
    layout="layout",
    release="digest",
    delta={"lora.0.q_proj.B": np.ones((8, 2), np.float32)},
    weight=3.0,
    counters=COHORT.counters,
    training=TrainCounters(steps=3),
    cohort=COHORT,
)


def sent(records: RecordDict) -> RecordDict:
    return recorddict_from_proto(recorddict_to_proto(records))


def changed(**records: object) -> RecordDict:
    """The update's records with some put in their place."""
    made = encode_update(UPDATE)
    for name, record in records.items():
        made[name.replace("__", ".")] = record
    return sent(made)


def test_a_gateways_update_comes_back_as_it_went_in() -> None:
    found = decode_update(sent(encode_update(UPDATE)), GATE)
    assert replace(found, delta={}) == replace(UPDATE, delta={})
    assert (found.devices, found.families) == (3, FAMILIES)


def test_a_gateways_evaluation_comes_back_as_it_went_in() -> None:
    evaluation = Evaluation(client="gate", family="gateway", counters=COHORT.counters, cohort=COHORT)
    assert decode_evaluation(sent(encode_evaluation(evaluation)), GATE) == evaluation


def test_a_devices_messages_are_as_they_were_before_there_were_gateways() -> None:
    update = replace(UPDATE, cohort=None)
    assert set(encode_update(update)) == {"update", "delta", "drafting", "training"}
    assert set(encode_request(TASK, RELEASE)) == {"task", "release", "adapter"}
    found = decode_update(sent(encode_update(update)), GATE)
    assert (found.devices, found.families) == (1, {"gateway": COHORT.counters})


def test_a_request_with_terms_is_one_without_to_a_device() -> None:
    terms = SumTerms(weights="tokens", devices=9, in_force=True)
    records = sent(encode_request(TASK, RELEASE, terms))
    assert decode_terms(records) == terms
    assert decode_train(records)[0] == TASK
    assert decode_terms(sent(encode_request(TASK, RELEASE))) is None


def test_the_counters_of_a_cohort_may_be_as_many_times_larger_as_it_has_devices() -> None:
    large = Cohort(devices=3, families={"spm": DraftCounters(tokens=3 * MAX_COUNTER)})
    assert decode_update(sent(encode_update(replace(UPDATE, cohort=large))), GATE).counters.tokens == 3 * MAX_COUNTER
    with pytest.raises(UpdateRejected, match="counter tokens"):
        decode_update(sent(encode_update(replace(UPDATE, cohort=replace(large, devices=2)))), GATE)


@pytest.mark.parametrize("devices", [0, -1, Cohort.MAX_DEVICES + 1, 2.0, "3"])
def test_a_number_of_devices_that_is_none_is_refused(devices: object) -> None:
    with pytest.raises(UpdateRejected):
        decode_update(changed(cohort=ConfigRecord({"devices": devices})), GATE)


def test_a_family_without_a_name_is_refused() -> None:
    records = encode_update(UPDATE)
    records["cohort."] = records["cohort.spm"]
    with pytest.raises(UpdateRejected, match="name is"):
        decode_update(sent(records), GATE)


def test_too_many_families_are_refused() -> None:
    families = {f"f{i}": DraftCounters() for i in range(MAX_FAMILIES + 1)}
    with pytest.raises(UpdateRejected, match="families"):
        decode_update(sent(encode_update(replace(UPDATE, cohort=Cohort(devices=3, families=families)))), GATE)


def test_a_cohort_says_what_is_wrong_with_it() -> None:
    with pytest.raises(ConfigError, match="devices is 0, expected 1 to 1000000"):
        Cohort(devices=0, families={})
