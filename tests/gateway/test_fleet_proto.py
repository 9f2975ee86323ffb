"""What may cross between a phone and the gateway: a message that could hold a user's text would be seen here."""

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from fleetdraft.common.wire import fleet_pb2

#: Fields of text: names and digests that the protocol knows; each is bounded or compared by the gateway.
TEXT = {
    "CheckInRequest.app_version",
    "CheckInRequest.base",
    "CheckInRequest.family",
    "CheckInRequest.release",
    "FetchReleaseRequest.digest",
    "ReleaseHead.base",
    "ReleaseHead.content_sha256",
    "ReleaseHead.digest",
    "ReleaseHead.layout",
    "ReleaseHead.layout_fingerprint",
    "ReportReply.reason",
    "ReportRequest.task_id",
    "Task.factors",
    "Task.id",
    "UploadHead.base",
    "UploadHead.content_sha256",
    "UploadHead.layout",
    "UploadHead.release",
    "UploadHead.task_id",
    "UploadReply.reason",
    "UploadStateRequest.content_sha256",
    "UploadStateRequest.task_id",
}
#: Fields of bytes: content whose size follows from layout and factors.
BYTES = {"ReleaseChunk.data", "UploadChunk.data"}
#: Fields that repeat, and could so hold a sequence of tokens.
REPEATED = {"Task.factors"}


def fields() -> list[tuple[str, FieldDescriptor]]:
    """Every field of every message, with the name of its message."""
    messages: list[Descriptor] = list(fleet_pb2.DESCRIPTOR.message_types_by_name.values())
    for message in messages:
        messages.extend(message.nested_types)
    return [(f"{message.name}.{field.name}", field) for message in messages for field in message.fields]


def test_only_known_fields_hold_text() -> None:
    assert {name for name, field in fields() if field.type == FieldDescriptor.TYPE_STRING} == TEXT


def test_only_content_is_bytes() -> None:
    assert {name for name, field in fields() if field.type == FieldDescriptor.TYPE_BYTES} == BYTES


def test_nothing_that_a_device_sends_repeats() -> None:
    assert {name for name, field in fields() if field.is_repeated} == REPEATED


def test_no_message_is_open_to_other_fields() -> None:
    assert not [name for name, field in fields() if field.message_type and field.message_type.file is not field.file]
    assert not [name for name, field in fields() if field.containing_type.extension_ranges]
