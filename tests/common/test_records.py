"""The codec: what goes in comes out, and whatever else comes in is refused with a reason and nothing worse."""

import io
import pickle
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given, settings

from fleetdraft.common.errors import UpdateRejected
from fleetdraft.common.lora import LoraLayout
from fleetdraft.common.messages import EvaluateTask, Evaluation, Identity, Release, TrainCounters, TrainTask, Update
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.common.records import (
    decode_evaluate,
    decode_evaluation,
    decode_identity,
    decode_train,
    decode_update,
    encode_evaluation,
    encode_identity,
    encode_request,
    encode_update,
    one_line,
    tensor_bytes,
)
from fleetdraft.common.shape import DecoderShape

ANN = Identity(client="ann", family="spm")
SHAPE = DecoderShape(
    vocab_size=32, hidden_size=8, layers=1, heads=2, kv_heads=1, head_dim=4, intermediate_size=12,
    context_limit=64, rope_theta=10000.0, rms_eps=1e-5, tied=True,
)  # fmt: skip
RELEASE = Release(number=3, adapter=LoraLayout(rank=2, alpha=4, shape=SHAPE).initial(seed=0), base="base")
UPDATE = Update(
    client="ann",
    family="spm",
    base="base",
    layout="layout",
    release="digest",
    delta={"lora.0.q_proj.B": np.arange(6, dtype=np.float32).reshape(3, 2), "empty": np.zeros((0, 2), np.float32)},
    weight=17,
    counters=DraftCounters(prompts=1, drafted=10, accepted=4, blocks=3, seconds=2),
    training=TrainCounters(steps=3, positions=9, loss=1.5),
)


def sent(records: RecordDict) -> RecordDict:
    """Over the wire and back."""
    return recorddict_from_proto(recorddict_to_proto(records))


def same_update(a: Update, b: Update) -> bool:
    same = all(np.array_equal(a.delta[n], b.delta[n]) for n in a.delta) and a.delta.keys() == b.delta.keys()
    return same and replace(a, delta={}) == replace(b, delta={})


def test_an_identity_comes_back() -> None:
    assert decode_identity(sent(encode_identity(ANN))) == ANN


def test_a_training_request_comes_back() -> None:
    task = TrainTask(round=3, seed=5, factors=("B",), clip_norm=2, timeout_s=9.5)
    back, release = decode_train(sent(encode_request(task, RELEASE)))
    assert back == task
    assert (release.number, release.base, release.adapter.digest) == (3, "base", RELEASE.adapter.digest)
    assert release.adapter.layout == RELEASE.adapter.layout


def test_an_evaluation_request_comes_back() -> None:
    task = EvaluateTask(round=3, seed=5)
    back, release = decode_evaluate(sent(encode_request(task, RELEASE)))
    assert (back, release.adapter.digest) == (task, RELEASE.adapter.digest)


def test_an_update_comes_back_under_the_name_its_receiver_knows() -> None:
    assert same_update(decode_update(sent(encode_update(UPDATE)), ANN), UPDATE)
    assert decode_update(encode_update(UPDATE), Identity(client="bob", family="bpe")).client == "bob"


def test_an_evaluation_comes_back() -> None:
    evaluation = Evaluation(
        client="ann", family="spm", counters=DraftCounters(drafted=2, accepted=1, blocks=1, seconds=0.5)
    )
    assert decode_evaluation(sent(encode_evaluation(evaluation)), ANN) == evaluation


def test_numpy_numbers_are_sent_as_plain_ones() -> None:
    update = replace(UPDATE, weight=np.float32(3), counters=DraftCounters(drafted=np.int64(7)))
    back = decode_update(sent(encode_update(update)), ANN)
    assert (back.weight, back.counters.drafted) == (3.0, 7)


def test_no_tensor_is_pickled_or_padded() -> None:
    array = next(iter(encode_update(UPDATE)["delta"].values()))
    np.testing.assert_array_equal(np.load(io.BytesIO(array.data), allow_pickle=False), UPDATE.delta["lora.0.q_proj.B"])


def test_tensor_bytes_count_data_and_headers() -> None:
    assert tensor_bytes(encode_update(UPDATE)) == 128 + 6 * 4 + 128


def test_a_release_that_was_changed_on_the_way_is_refused() -> None:
    records = encode_request(TrainTask(round=1, seed=0), RELEASE)
    name = next(iter(records["adapter"]))
    records["adapter"][name] = Array(records["adapter"][name].numpy() + 1)
    with pytest.raises(UpdateRejected, match="does not match its digest"):
        decode_train(records)


def test_a_release_of_other_tensors_is_refused() -> None:
    records = encode_request(TrainTask(round=1, seed=0), RELEASE)
    del records["adapter"]["lora.0.q_proj.A"]
    with pytest.raises(UpdateRejected, match="names and shapes of its layout"):
        decode_train(records)


def test_another_schema_is_named() -> None:
    records = encode_identity(ANN)
    records["hello"]["schema"] = 99
    with pytest.raises(UpdateRejected, match="schema is 99, expected 1"):
        decode_identity(records)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


TENSORS = {
    "empty": b"",
    "no .npy": b"x" * 300,
    "cut short": npy(np.ones((4, 4), np.float32))[:-1],
    "too long": npy(np.ones((4, 4), np.float32)) + b"x",
    "4 EiB in its shape": npy(np.ones((4, 4), np.float32)).replace(
        b"(4, 4), }" + b" " * 20, b"(1048576, 1099511627776), }"
    ),
    "a pickle": npy(np.ones(2)).split(b"{")[0] + pickle.dumps([1]),
    "objects": npy(np.ones(2, np.float64)).replace(b"'<f8'", b"'|O' "),
    "Fortran order": npy(np.asfortranarray(np.arange(6.0).reshape(2, 3))),
    "version 2": b"\x93NUMPY\x02\x00" + npy(np.ones(2))[8:],
}


@pytest.mark.parametrize("what", TENSORS)
def test_a_tensor_that_lies_about_itself_is_refused(what) -> None:
    records = encode_update(UPDATE)
    data = TENSORS[what]
    records["delta"]["bad"] = Array(dtype="float32", shape=(4, 4), stype="numpy.ndarray", data=data)
    with pytest.raises(UpdateRejected):
        decode_update(records, ANN)


@pytest.mark.parametrize(
    ("record", "field", "value", "reason"),
    [
        ("drafting", "accepted", -1, "counter accepted is -1"),
        ("drafting", "seconds", float("nan"), "counter seconds is nan"),
        ("drafting", "seconds", 1e300, r"counter seconds is 1e\+300, expected a number from 0 to 1e\+12"),
        ("drafting", "tokens", 10**12 + 1, "counter tokens is 1000000000001"),
        ("training", "loss", 1e13, "counter loss is 1"),
        ("drafting", "accepted", 11, "counter accepted is 11, expected at most drafted = 10"),
        ("drafting", "blocks", 0, "counter accepted is 4 in 0 blocks"),
        ("drafting", "accepted", 0.5, "field accepted is a float, expected int"),
        ("training", "loss", float("inf"), "counter loss is inf"),
        ("update", "weight", "heavy", "field weight is a str, expected float"),
        ("update", "base", b"bytes", "field base is a bytes, expected str"),
        ("update", "extra", 1, r"fields are \['base', 'extra'"),
    ],
)
def test_a_field_of_another_type_or_range_is_refused_with_its_name(record, field, value, reason) -> None:
    records = encode_update(UPDATE)
    records[record][field] = value
    with pytest.raises(UpdateRejected, match=reason):
        decode_update(records, ANN)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"accepted": 5000}, "accepted is 5000, expected at most drafted = 1000"),
        ({"blocks": 0}, "accepted is 400 in 0 blocks"),
        ({"drafted": 10**12 + 1}, "drafted is 1000000000001"),
        ({"seconds": float("inf")}, "seconds is inf"),
    ],
)
def test_an_evaluation_that_cannot_be_true_is_refused(changes, reason) -> None:
    counters = DraftCounters(drafted=1000, accepted=400, blocks=300, seconds=1.0)
    evaluation = Evaluation(client="ann", family="spm", counters=replace(counters, **changes))
    with pytest.raises(UpdateRejected, match=f"counter {reason}"):
        decode_evaluation(encode_evaluation(evaluation), ANN)


SCALARS = st.one_of(st.integers(-9, 9), st.floats(), st.sampled_from(["", "a", "{}", b"", b"x", True]))
KEYS = st.sampled_from(["base", "layout", "release", "weight", "steps", "loss", "schema", "client", "x"])
RECORD = st.one_of(
    st.dictionaries(KEYS, st.one_of(SCALARS, st.lists(st.integers(0, 9), max_size=2)), max_size=4).map(ConfigRecord),
    st.dictionaries(KEYS, st.one_of(st.integers(-9, 9), st.floats()), max_size=4).map(MetricRecord),
    st.dictionaries(KEYS, st.binary(max_size=200), max_size=2).map(
        lambda d: ArrayRecord({k: Array(dtype="", shape=(), stype="", data=v) for k, v in d.items()})
    ),
)
NAMES = st.sampled_from(["hello", "task", "release", "adapter", "update", "delta", "drafting", "training"])


@settings(deadline=None)  # the machine may be busy
@given(st.dictionaries(NAMES, RECORD, max_size=8).map(RecordDict))
def test_decoding_anything_is_refused_and_raises_nothing_else(records) -> None:
    for decode in (decode_identity, decode_train, decode_evaluate):
        with pytest.raises(UpdateRejected):
            decode(records)
    for decode in (decode_update, decode_evaluation):
        with pytest.raises(UpdateRejected):
            decode(records, ANN)


def test_a_reason_is_one_short_line() -> None:
    assert one_line("a\n  b\tc") == "a b c"
    assert len(one_line("x" * 999)) == 200
    assert one_line("\x1b[2J\u202eevil") == r"\x1b[2J\u202eevil"
