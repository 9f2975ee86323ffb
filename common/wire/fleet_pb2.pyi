from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CheckInRequest(_message.Message):
    __slots__ = ("protocol", "app_version", "base", "family", "release", "eligible")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    APP_VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ELIGIBLE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    app_version: str
    base: str
    family: str
    release: str
    eligible: bool
    def __init__(self, protocol: _Optional[int] = ..., app_version: _Optional[str] = ..., base: _Optional[str] = ..., family: _Optional[str] = ..., release: _Optional[str] = ..., eligible: _Optional[bool] = ...) -> None: ...

class CheckInReply(_message.Message):
    __slots__ = ("task", "come_back", "promoted")
    TASK_FIELD_NUMBER: _ClassVar[int]
    COME_BACK_FIELD_NUMBER: _ClassVar[int]
    PROMOTED_FIELD_NUMBER: _ClassVar[int]
    task: Task
    come_back: ComeBack
    promoted: ReleaseHead
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., come_back: _Optional[_Union[ComeBack, _Mapping]] = ..., promoted: _Optional[_Union[ReleaseHead, _Mapping]] = ...) -> None: ...

class ComeBack(_message.Message):
    __slots__ = ("after_s", "reason")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[ComeBack.Reason]
        NO_ROUND: _ClassVar[ComeBack.Reason]
        ROUND_FULL: _ClassVar[ComeBack.Reason]
        NOT_ELIGIBLE: _ClassVar[ComeBack.Reason]
        WRONG_BASE: _ClassVar[ComeBack.Reason]
        DONE: _ClassVar[ComeBack.Reason]
    REASON_UNSPECIFIED: ComeBack.Reason
    NO_ROUND: ComeBack.Reason
    ROUND_FULL: ComeBack.Reason
    NOT_ELIGIBLE: ComeBack.Reason
    WRONG_BASE: ComeBack.Reason
    DONE: ComeBack.Reason
    AFTER_S_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    after_s: float
    reason: ComeBack.Reason
    def __init__(self, after_s: _Optional[float] = ..., reason: _Optional[_Union[ComeBack.Reason, str]] = ...) -> None: ...

class ReleaseHead(_message.Message):
    __slots__ = ("number", "digest", "base", "layout", "content_sha256", "content_bytes", "layout_fingerprint")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_SHA256_FIELD_NUMBER: _ClassVar[int]
    CONTENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    number: int
    digest: str
    base: str
    layout: str
    content_sha256: str
    content_bytes: int
    layout_fingerprint: str
    def __init__(self, number: _Optional[int] = ..., digest: _Optional[str] = ..., base: _Optional[str] = ..., layout: _Optional[str] = ..., content_sha256: _Optional[str] = ..., content_bytes: _Optional[int] = ..., layout_fingerprint: _Optional[str] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("id", "kind", "release", "round", "seed", "factors", "clip_norm", "deadline_s")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Task.Kind]
        TRAIN: _ClassVar[Task.Kind]
        EVALUATE: _ClassVar[Task.Kind]
    KIND_UNSPECIFIED: Task.Kind
    TRAIN: Task.Kind
    EVALUATE: Task.Kind
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FACTORS_FIELD_NUMBER: _ClassVar[int]
    CLIP_NORM_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: Task.Kind
    release: ReleaseHead
    round: int
    seed: int
    factors: _containers.RepeatedScalarFieldContainer[str]
    clip_norm: float
    deadline_s: float
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[_Union[Task.Kind, str]] = ..., release: _Optional[_Union[ReleaseHead, _Mapping]] = ..., round: _Optional[int] = ..., seed: _Optional[int] = ..., factors: _Optional[_Iterable[str]] = ..., clip_norm: _Optional[float] = ..., deadline_s: _Optional[float] = ...) -> None: ...

class FetchReleaseRequest(_message.Message):
    __slots__ = ("digest", "offset")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    digest: str
    offset: int
    def __init__(self, digest: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class ReleaseChunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadStateRequest(_message.Message):
    __slots__ = ("task_id", "content_sha256")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    CONTENT_SHA256_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    content_sha256: str
    def __init__(self, task_id: _Optional[str] = ..., content_sha256: _Optional[str] = ...) -> None: ...

class UploadStateReply(_message.Message):
    __slots__ = ("received", "done")
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    received: int
    done: bool
    def __init__(self, received: _Optional[int] = ..., done: _Optional[bool] = ...) -> None: ...

class UploadChunk(_message.Message):
    __slots__ = ("head", "offset", "data")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    head: UploadHead
    offset: int
    data: bytes
    def __init__(self, head: _Optional[_Union[UploadHead, _Mapping]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadHead(_message.Message):
    __slots__ = ("task_id", "content_sha256", "content_bytes", "base", "layout", "release", "weight", "drafting", "training")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    CONTENT_SHA256_FIELD_NUMBER: _ClassVar[int]
    CONTENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    DRAFTING_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    content_sha256: str
    content_bytes: int
    base: str
    layout: str
    release: str
    weight: float
    drafting: DraftCounters
    training: TrainCounters
    def __init__(self, task_id: _Optional[str] = ..., content_sha256: _Optional[str] = ..., content_bytes: _Optional[int] = ..., base: _Optional[str] = ..., layout: _Optional[str] = ..., release: _Optional[str] = ..., weight: _Optional[float] = ..., drafting: _Optional[_Union[DraftCounters, _Mapping]] = ..., training: _Optional[_Union[TrainCounters, _Mapping]] = ...) -> None: ...

class UploadReply(_message.Message):
    __slots__ = ("outcome", "reason")
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OUTCOME_UNSPECIFIED: _ClassVar[UploadReply.Outcome]
        ACCEPTED: _ClassVar[UploadReply.Outcome]
        REJECTED: _ClassVar[UploadReply.Outcome]
        LATE: _ClassVar[UploadReply.Outcome]
    OUTCOME_UNSPECIFIED: UploadReply.Outcome
    ACCEPTED: UploadReply.Outcome
    REJECTED: UploadReply.Outcome
    LATE: UploadReply.Outcome
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    outcome: UploadReply.Outcome
    reason: str
    def __init__(self, outcome: _Optional[_Union[UploadReply.Outcome, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("task_id", "drafting")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    DRAFTING_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    drafting: DraftCounters
    def __init__(self, task_id: _Optional[str] = ..., drafting: _Optional[_Union[DraftCounters, _Mapping]] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ("outcome", "reason")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    outcome: UploadReply.Outcome
    reason: str
    def __init__(self, outcome: _Optional[_Union[UploadReply.Outcome, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class DraftCounters(_message.Message):
    __slots__ = ("prompts", "blocks", "drafted", "accepted", "tokens", "draft_tokens", "drafter_calls", "target_calls", "seconds")
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_CALLS_FIELD_NUMBER: _ClassVar[int]
    TARGET_CALLS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    prompts: int
    blocks: int
    drafted: int
    accepted: int
    tokens: int
    draft_tokens: int
    drafter_calls: int
    target_calls: int
    seconds: float
    def __init__(self, prompts: _Optional[int] = ..., blocks: _Optional[int] = ..., drafted: _Optional[int] = ..., accepted: _Optional[int] = ..., tokens: _Optional[int] = ..., draft_tokens: _Optional[int] = ..., drafter_calls: _Optional[int] = ..., target_calls: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class TrainCounters(_message.Message):
    __slots__ = ("steps", "positions", "loss")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    steps: int
    positions: int
    loss: float
    def __init__(self, steps: _Optional[int] = ..., positions: _Optional[int] = ..., loss: _Optional[float] = ...) -> None: ...
