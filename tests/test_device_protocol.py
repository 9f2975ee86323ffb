"""What docs/device-protocol.md says in tables and examples is what the code does."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.learning.learner import LearnerConfig
from fleetdraft.client.learning.lesson import _DTYPES, Lesson
from fleetdraft.client.learning.replay import ReplayConfig
from fleetdraft.client.learning.teacher import LEAST
from fleetdraft.client.learning.trainer import AdamWConfig
from fleetdraft.client.phone import _TRANSIENT, PhoneConfig
from fleetdraft.client.runtimes import onnx_decoder
from fleetdraft.common import content, fixed_point, fleet_wire, records
from fleetdraft.common.bundle import SCHEMA, base_fingerprint, target_fingerprint
from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.files import sha256_file
from fleetdraft.common.lora import LoraLayout
from fleetdraft.common.losses import DIVERGENCES
from fleetdraft.common.objective import Objective
from fleetdraft.common.peft_format import tensor_name
from fleetdraft.common.shape import DecoderShape
from fleetdraft.common.wire import device_pb2, fleet_pb2
from fleetdraft.export.decode_graph import decode_graph
from fleetdraft.export.train_graph import train_graph
from fleetdraft.server.aggregation import aggregate
from fleetdraft.server.gateway.limits import LimitsTable

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/device-protocol.md").read_text(encoding="utf-8")

#: No two sizes alike, so that none can stand for another; the head size is no multiple of 16.
ODD = DecoderShape(
    vocab_size=50, hidden_size=24, layers=3, heads=5, kv_heads=1, head_dim=8, intermediate_size=28,
    context_limit=64, rope_theta=10000.0, rms_eps=1e-5, tied=False,
)  # fmt: skip
Value = tuple[str, tuple[int | str, ...]]
"""dtype and shape; a text is a free axis."""


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open(EMBEDDED)


def section(title: str) -> str:
    """The text below a heading, up to the next heading of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", TEXT, flags=re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found.group(1)


def rows(title: str) -> list[list[str]]:
    """The cells of all tables below a heading, without the heads."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    head = {at for at in range(len(lines)) if at + 1 < len(lines) and set(lines[at + 1]) <= set("|- ")}
    body = [line for at, line in enumerate(lines) if at not in head and not set(line) <= set("|- ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body]


# --- graphs ---------------------------------------------------------------------------------------------------------


def told(title: str, direction: str, shape: DecoderShape) -> dict[str, Value]:
    """The inputs or outputs that a table names, for a decoder of a shape."""
    sizes = {
        "h": shape.hidden_size, "q": shape.heads * shape.head_dim, "kv": shape.kv_heads * shape.head_dim,
        "m": shape.intermediate_size, "V": shape.vocab_size, "kv_heads": shape.kv_heads,
        "head": -(-shape.head_dim // 16) * 16,
    }  # fmt: skip
    found: dict[str, Value] = {}
    for way, name, dtype, size, _ in rows(title):
        if way == direction:
            value = dtype, tuple(axis_of(axis.strip(), sizes) for axis in size.strip("()").split(",") if axis.strip())
            found |= {name.strip("`").replace("{l}", str(layer)): value for layer in range(shape.layers)}
    return found


def axis_of(text: str, sizes: Mapping[str, int]) -> int | str:
    """A size: a free one in quotes, a number, or a sum of multiples of sizes as ``q + 2 kv``."""
    if text.startswith('"'):
        return text.strip('"')
    total = 0
    for term in text.split("+"):
        *factor, last = term.split()
        total += int(factor[0] if factor else 1) * (int(last) if last.isdigit() else sizes[last])
    return total


def values(given: Any, without: frozenset[str] = frozenset()) -> dict[str, Value]:
    """Names, dtypes and shapes of a graph's inputs or outputs."""
    return {
        value.name: (
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in given
        if value.name not in without
    }


def graphs_of(bundle: Bundle, name: str) -> Iterator[tuple[DecoderShape, Any]]:
    """A graph of the shipped bundle, and one of odd sizes."""
    yield bundle.manifest.shape, onnx.load(bundle.directory / "drafter" / name, load_external_data=False).graph
    layout = LoraLayout(rank=2, alpha=4, shape=ODD)
    yield ODD, (decode_graph(ODD, lora=True) if name == "decode.onnx" else train_graph(layout)).graph


def test_the_decode_graph_reads_and_gives_what_is_told(bundle: Bundle) -> None:
    for shape, graph in graphs_of(bundle, "decode.onnx"):
        assert values(graph.input) == told("Decode", "in", shape)
        assert values(graph.output) == told("Decode", "out", shape)


def test_the_train_graph_reads_and_gives_what_is_told(bundle: Bundle) -> None:
    for shape, graph in graphs_of(bundle, "train.onnx"):
        weights = frozenset(value.name for value in graph.input if value.name.startswith(("model.", "lm_head.")))
        inputs = told("Train", "in", shape)
        assert values(graph.input, weights) == inputs
        outputs = told("Train", "out", shape)
        for name, value in inputs.items():  # "and so for every tensor of the adapter"
            if name.startswith("lora."):
                assert outputs.setdefault(f"grad.{name}", value) == value
        assert values(graph.output) == outputs


def test_the_operators_are_those_of_the_shipped_graphs(bundle: Bundle) -> None:
    for name, listed in rows("Operators"):
        model = onnx.load(bundle.directory / f"drafter/{name}.onnx", load_external_data=False)
        bodies = [model.graph, *(a.g for node in model.graph.node for a in node.attribute if a.HasField("g"))]
        nodes = [node for body in bodies for node in body.node]
        assert set(listed.split(", ")) == {f"{n.domain}:{n.op_type}" if n.domain else n.op_type for n in nodes}


def test_divergences_are_told_in_their_order() -> None:
    found = re.search(r"Divergences in the order of the input: (.*?)\s\(", section("Train"), flags=re.DOTALL)
    assert found is not None
    assert tuple(re.findall(r"`(.*?)`", found.group(1))) == DIVERGENCES


def test_buffers_and_context_are_told(bundle: Bundle) -> None:
    assert f"with {onnx_decoder._FIRST_ROWS} rows" in section("Decode")
    assert f"and {bundle.drafter.model.limit} at most" in section("Decode")


# --- fingerprints ---------------------------------------------------------------------------------------------------


def test_the_example_of_fingerprints_is_right(bundle: Bundle) -> None:
    drafter, adapter, layout = bundle.directory / "drafter", bundle.adapter(), bundle.manifest.layout
    found = re.search(r"```example\n(.*?)```", TEXT, flags=re.DOTALL)
    assert found is not None
    given = dict(re.split(r"\s{2,}", line) for line in found.group(1).splitlines())
    assert given == {
        "file drafter/model.safetensors": sha256_file(drafter / "model.safetensors"),
        "file drafter/tokenizer.json": sha256_file(drafter / "tokenizer.json"),
        "base": base_fingerprint(drafter),
        "layout": layout.fingerprint,
        "digest of drafter/initial": adapter.digest,
        "content of drafter/initial": content.digest(content.to_content(adapter.arrays, layout.shapes)),
        "target spm": target_fingerprint(bundle.directory / "targets/spm"),
    }
    assert given["base"] == bundle.base
    files = given["file drafter/model.safetensors"] + given["file drafter/tokenizer.json"]
    assert (hashlib.sha256(files.encode()).hexdigest(), len(files)) == (given["base"], 128)


def test_the_layouts_json_is_what_its_fingerprint_is_taken_over(bundle: Bundle) -> None:
    found = re.search(r"```json\n(.*?)\n```", TEXT)
    assert found is not None
    assert f"of these {len(found.group(1))} bytes" in TEXT
    assert hashlib.sha256(found.group(1).encode()).hexdigest() == bundle.manifest.layout.fingerprint


def test_the_adapters_digest_is_taken_over_layout_and_content(bundle: Bundle) -> None:
    adapter = bundle.adapter()
    parts = adapter.layout.fingerprint.encode() + content.to_content(adapter.arrays, adapter.layout.shapes)
    assert hashlib.sha256(parts).hexdigest() == adapter.digest


def test_the_places_of_tensors_in_content_are_told(bundle: Bundle) -> None:
    layout, at, places = bundle.manifest.layout, 0, dict[str, tuple[str, int]]()
    for name, size in layout.shapes.items():
        places[f"`{name}`"] = str(size), at
        at += 4 * size[0] * size[1]
    *tensors, whole, half = rows("The adapter")
    assert {name: places[name] for name, *_ in tensors} == {name: (s, int(p)) for name, s, p in tensors}
    assert int(whole[-1]) == at == content.content_bytes(layout.shapes)
    assert int(half[-1]) == content.content_bytes(fleet_wire.shapes_of(layout, ["B"]))


def test_the_name_in_a_peft_directory_is_told() -> None:
    assert f"`{tensor_name((7, 'q_proj'), 'A').replace('.7.', '.{l}.')}`" in section("The adapter")


def test_the_manifests_schema_is_told() -> None:
    assert f"(`schema` {SCHEMA})" in section("The bundle")


# --- numbers --------------------------------------------------------------------------------------------------------

OWNERS: dict[str, Any] = {
    "AdamWConfig": AdamWConfig(),
    "Objective": Objective(),
    "LearnerConfig": LearnerConfig(),
    "ReplayConfig": ReplayConfig(),
    "PhoneConfig": PhoneConfig(token="t", base="b", family="f"),
    "LimitsTable": LimitsTable(),
    "fleet_wire": fleet_wire,
    "records": records,
    "aggregate": aggregate,
    "fixed_point": fixed_point,
}
CONSTANTS = [
    row for title in ("A training step", "The phone's states", "Limits") for row in rows(title) if len(row) == 3
]


@pytest.mark.parametrize("row", CONSTANTS, ids=lambda row: row[-1].strip("`"))
def test_a_constant_is_that_of_the_code(row: list[str]) -> None:
    owner, _, name = row[2].strip("`").partition(".")
    assert float(row[1]) == float(getattr(OWNERS[owner], name))


def test_every_constant_of_the_optimiser_is_told() -> None:
    assert {f"`AdamWConfig.{name}`" for name in vars(AdamWConfig())} <= {row[2] for row in CONSTANTS}


def test_the_least_probability_of_a_rejected_token_is_told() -> None:
    assert f"probability {LEAST:g} at least" in section("From text to lessons")


def test_the_tensors_of_a_lesson_are_told() -> None:
    dtypes = {"int64": "I32", "float32": "F32", "bool": "BOOL"}
    kinds = {name: dtypes[dtype.__name__.rstrip("_")] for name, dtype in _DTYPES.items()}
    assert {name.strip("`"): dtype for name, dtype, *_ in rows("Lessons")} == kinds | {"written": "F64"}
    assert set(kinds) | {"written"} == set(Lesson.__dataclass_fields__)


# --- messages -------------------------------------------------------------------------------------------------------


def kind_of(field: FieldDescriptor) -> str:
    """A field's type as the table writes it."""
    if field.message_type is not None:
        return str(field.message_type.name)
    name = next(n for n in vars(FieldDescriptor) if n.startswith("TYPE_") and getattr(FieldDescriptor, n) == field.type)
    return name.removeprefix("TYPE_").lower() + (", repeated" if field.is_repeated else "")


def fields_of(message: Descriptor) -> Iterator[tuple[str, str, str]]:
    for field in message.fields:
        yield message.name, field.name, kind_of(field)


def test_every_field_of_every_message_of_the_fleet_is_told_and_no_other() -> None:
    known = [row for message in fleet_pb2.DESCRIPTOR.message_types_by_name.values() for row in fields_of(message)]
    given = [tuple(row[:3]) for row in rows("The fleet: messages")]
    assert sorted(given) == sorted(known)


def test_no_field_of_the_fleet_can_hold_tokens_and_every_text_is_told() -> None:
    integers = ("int32", "int64", "uint32", "uint64", "sint32", "sint64", "fixed32", "fixed64")
    for message, field, kind, _ in rows("The fleet: messages"):
        if ", repeated" in kind:
            assert kind.partition(",")[0] not in integers, (message, field)
    texts = {(message, field) for message, field, kind, _ in rows("The fleet: messages") if kind.startswith("string")}
    allowed = {
        "app_version", "base", "family", "release", "digest", "layout", "content_sha256", "layout_fingerprint", "id",
        "factors", "task_id", "reason",
    }  # fmt: skip
    assert {field for _, field in texts} == allowed


def test_the_values_of_enums_are_told() -> None:
    messages = fleet_pb2.DESCRIPTOR.message_types_by_name
    told_of = {(m, f): w for m, f, kind, w in rows("The fleet: messages") if kind == "enum"}
    for message, field in (("ComeBack", "reason"), ("Task", "kind"), ("UploadReply", "outcome")):
        names = [v.name for v in messages[message].fields_by_name[field].enum_type.values if v.number]
        assert ", ".join(names) == told_of[message, field]


def test_the_calls_of_the_agent_are_told() -> None:
    service = device_pb2.DESCRIPTOR.services_by_name["Device"]
    known = [method.name for method in service.methods]
    assert [name for name, _ in rows("The agent: a program on the same device")] == known
    for message, fields in (("ScoreRequest", ("keep", "token_ids", "rows")), ("Scores", ("logits",))):
        assert set(fields) == set(device_pb2.DESCRIPTOR.message_types_by_name[message].fields_by_name)


def test_the_codes_that_are_tried_again_are_those_of_both_phones() -> None:
    again = {code for codes, _, what in rows("Status codes") if "with back-off" in what for code in codes.split(", ")}
    assert again == {code.name for code in _TRANSIENT}
    source = (ROOT / "client/typescript/src/fleet/gateway.ts").read_text(encoding="utf-8")
    remedies = dict(re.findall(r'^  ([A-Z_]+): "([a-z-]+)",$', source, flags=re.MULTILINE))
    assert {code for code, remedy in remedies.items() if remedy in ("again", "resume")} == again
    assert {code for code, remedy in remedies.items() if remedy == "check-in"} == {"NOT_FOUND"}


def test_the_phone_in_typescript_tries_and_cuts_as_is_told() -> None:
    source = (ROOT / "client/typescript/src/fleet/back-off.ts").read_text(encoding="utf-8")
    config = OWNERS["PhoneConfig"]
    assert f"{{ tries: {config.tries}, firstS: {config.first_wait_s:g} }}" in source
    source = (ROOT / "client/typescript/src/fleet/gateway.ts").read_text(encoding="utf-8")
    assert f"PROTOCOL = {fleet_wire.PROTOCOL};" in source
    assert f"CHUNK_BYTES = {fleet_wire.CHUNK_BYTES};" in source


def test_links_lead_to_files_and_headings() -> None:
    for text in (TEXT, (ROOT / "client/typescript/README.md").read_text(encoding="utf-8")):
        folder = ROOT / ("docs" if text is TEXT else "client/typescript")
        for path, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
            target = folder / path if path else None
            assert target is None or target.exists(), path
            if anchor and (target is None or target.name == "device-protocol.md"):
                titles = re.findall(r"^#+ (.*)$", TEXT, flags=re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}, anchor
    for path in re.findall(r"`((?:client|common|server)/[\w/.-]+)`", TEXT):
        assert (ROOT / path).exists(), path
