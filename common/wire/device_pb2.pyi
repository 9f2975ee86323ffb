from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Options(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "draft_tokens", "controller", "stop", "seed")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    max_new_tokens: int
    draft_tokens: int
    controller: str
    stop: _containers.RepeatedScalarFieldContainer[str]
    seed: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., max_new_tokens: _Optional[int] = ..., draft_tokens: _Optional[int] = ..., controller: _Optional[str] = ..., stop: _Optional[_Iterable[str]] = ..., seed: _Optional[int] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("prompt", "target", "options", "token_events", "learn")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_EVENTS_FIELD_NUMBER: _ClassVar[int]
    LEARN_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    target: str
    options: Options
    token_events: bool
    learn: bool
    def __init__(self, prompt: _Optional[str] = ..., target: _Optional[str] = ..., options: _Optional[_Union[Options, _Mapping]] = ..., token_events: _Optional[bool] = ..., learn: _Optional[bool] = ...) -> None: ...

class GenerateEvent(_message.Message):
    __slots__ = ("piece", "tokens", "finished")
    PIECE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    piece: str
    tokens: TokenEvent
    finished: Finished
    def __init__(self, piece: _Optional[str] = ..., tokens: _Optional[_Union[TokenEvent, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class TokenEvent(_message.Message):
    __slots__ = ("token_ids", "proposed", "accepted")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROPOSED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    proposed: int
    accepted: int
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., proposed: _Optional[int] = ..., accepted: _Optional[int] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("reason", "counters", "first_piece_s", "learned")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[Finished.Reason]
        END_OF_TEXT: _ClassVar[Finished.Reason]
        STOP: _ClassVar[Finished.Reason]
        LENGTH: _ClassVar[Finished.Reason]
        CONTEXT: _ClassVar[Finished.Reason]
    REASON_UNSPECIFIED: Finished.Reason
    END_OF_TEXT: Finished.Reason
    STOP: Finished.Reason
    LENGTH: Finished.Reason
    CONTEXT: Finished.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    FIRST_PIECE_S_FIELD_NUMBER: _ClassVar[int]
    LEARNED_FIELD_NUMBER: _ClassVar[int]
    reason: Finished.Reason
    counters: Counters
    first_piece_s: float
    learned: bool
    def __init__(self, reason: _Optional[_Union[Finished.Reason, str]] = ..., counters: _Optional[_Union[Counters, _Mapping]] = ..., first_piece_s: _Optional[float] = ..., learned: _Optional[bool] = ...) -> None: ...

class Counters(_message.Message):
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

class FeedbackRequest(_message.Message):
    __slots__ = ("begin", "scores")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    begin: FeedbackBegin
    scores: Scores
    def __init__(self, begin: _Optional[_Union[FeedbackBegin, _Mapping]] = ..., scores: _Optional[_Union[Scores, _Mapping]] = ...) -> None: ...

class FeedbackBegin(_message.Message):
    __slots__ = ("target", "prompt", "options", "context_limit", "token_events", "learn")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LIMIT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_EVENTS_FIELD_NUMBER: _ClassVar[int]
    LEARN_FIELD_NUMBER: _ClassVar[int]
    target: str
    prompt: str
    options: Options
    context_limit: int
    token_events: bool
    learn: bool
    def __init__(self, target: _Optional[str] = ..., prompt: _Optional[str] = ..., options: _Optional[_Union[Options, _Mapping]] = ..., context_limit: _Optional[int] = ..., token_events: _Optional[bool] = ..., learn: _Optional[bool] = ...) -> None: ...

class Scores(_message.Message):
    __slots__ = ("logits",)
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    logits: bytes
    def __init__(self, logits: _Optional[bytes] = ...) -> None: ...

class FeedbackEvent(_message.Message):
    __slots__ = ("score", "piece", "tokens", "finished")
    SCORE_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    score: ScoreRequest
    piece: str
    tokens: TokenEvent
    finished: Finished
    def __init__(self, score: _Optional[_Union[ScoreRequest, _Mapping]] = ..., piece: _Optional[str] = ..., tokens: _Optional[_Union[TokenEvent, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("keep", "token_ids", "rows")
    KEEP_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    keep: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    rows: int
    def __init__(self, keep: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., rows: _Optional[int] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("version", "base", "targets", "participates", "eligible", "refusals", "release", "release_digest", "training", "draining", "texts_active", "texts_waiting", "decisions", "resident_bytes", "learning_refusals", "lessons", "training_steps", "failure")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    PARTICIPATES_FIELD_NUMBER: _ClassVar[int]
    ELIGIBLE_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    TEXTS_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    TEXTS_WAITING_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEARNING_REFUSALS_FIELD_NUMBER: _ClassVar[int]
    LESSONS_FIELD_NUMBER: _ClassVar[int]
    TRAINING_STEPS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    version: str
    base: str
    targets: _containers.RepeatedCompositeFieldContainer[TargetStatus]
    participates: bool
    eligible: bool
    refusals: _containers.RepeatedScalarFieldContainer[str]
    release: int
    release_digest: str
    training: bool
    draining: bool
    texts_active: int
    texts_waiting: int
    decisions: _containers.RepeatedScalarFieldContainer[str]
    resident_bytes: int
    learning_refusals: _containers.RepeatedScalarFieldContainer[str]
    lessons: int
    training_steps: int
    failure: str
    def __init__(self, version: _Optional[str] = ..., base: _Optional[str] = ..., targets: _Optional[_Iterable[_Union[TargetStatus, _Mapping]]] = ..., participates: _Optional[bool] = ..., eligible: _Optional[bool] = ..., refusals: _Optional[_Iterable[str]] = ..., release: _Optional[int] = ..., release_digest: _Optional[str] = ..., training: _Optional[bool] = ..., draining: _Optional[bool] = ..., texts_active: _Optional[int] = ..., texts_waiting: _Optional[int] = ..., decisions: _Optional[_Iterable[str]] = ..., resident_bytes: _Optional[int] = ..., learning_refusals: _Optional[_Iterable[str]] = ..., lessons: _Optional[int] = ..., training_steps: _Optional[int] = ..., failure: _Optional[str] = ...) -> None: ...

class TargetStatus(_message.Message):
    __slots__ = ("name", "family", "counters", "learns", "generates")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    LEARNS_FIELD_NUMBER: _ClassVar[int]
    GENERATES_FIELD_NUMBER: _ClassVar[int]
    name: str
    family: str
    counters: Counters
    learns: bool
    generates: bool
    def __init__(self, name: _Optional[str] = ..., family: _Optional[str] = ..., counters: _Optional[_Union[Counters, _Mapping]] = ..., learns: _Optional[bool] = ..., generates: _Optional[bool] = ...) -> None: ...

class ParticipateRequest(_message.Message):
    __slots__ = ("participate",)
    PARTICIPATE_FIELD_NUMBER: _ClassVar[int]
    participate: bool
    def __init__(self, participate: _Optional[bool] = ...) -> None: ...

class ParticipateReply(_message.Message):
    __slots__ = ("participates",)
    PARTICIPATES_FIELD_NUMBER: _ClassVar[int]
    participates: bool
    def __init__(self, participates: _Optional[bool] = ...) -> None: ...

class PullReleaseRequest(_message.Message):
    __slots__ = ("head", "data")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    head: ReleaseHead
    data: bytes
    def __init__(self, head: _Optional[_Union[ReleaseHead, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ReleaseHead(_message.Message):
    __slots__ = ("number", "digest", "base", "layout")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    number: int
    digest: str
    base: str
    layout: str
    def __init__(self, number: _Optional[int] = ..., digest: _Optional[str] = ..., base: _Optional[str] = ..., layout: _Optional[str] = ...) -> None: ...

class PullReleaseReply(_message.Message):
    __slots__ = ("changed", "what")
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    changed: bool
    what: str
    def __init__(self, changed: _Optional[bool] = ..., what: _Optional[str] = ...) -> None: ...

class PushUpdateRequest(_message.Message):
    __slots__ = ("release", "adapter", "round", "seed", "factors", "clip_norm", "work", "id")
    class Work(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        WORK_UNSPECIFIED: _ClassVar[PushUpdateRequest.Work]
        TRAIN: _ClassVar[PushUpdateRequest.Work]
        EVALUATE: _ClassVar[PushUpdateRequest.Work]
    WORK_UNSPECIFIED: PushUpdateRequest.Work
    TRAIN: PushUpdateRequest.Work
    EVALUATE: PushUpdateRequest.Work
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FACTORS_FIELD_NUMBER: _ClassVar[int]
    CLIP_NORM_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    release: ReleaseHead
    adapter: bytes
    round: int
    seed: int
    factors: _containers.RepeatedScalarFieldContainer[str]
    clip_norm: float
    work: PushUpdateRequest.Work
    id: str
    def __init__(self, release: _Optional[_Union[ReleaseHead, _Mapping]] = ..., adapter: _Optional[bytes] = ..., round: _Optional[int] = ..., seed: _Optional[int] = ..., factors: _Optional[_Iterable[str]] = ..., clip_norm: _Optional[float] = ..., work: _Optional[_Union[PushUpdateRequest.Work, str]] = ..., id: _Optional[str] = ...) -> None: ...

class PushUpdateEvent(_message.Message):
    __slots__ = ("progress", "head", "data")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    progress: PushProgress
    head: UpdateHead
    data: bytes
    def __init__(self, progress: _Optional[_Union[PushProgress, _Mapping]] = ..., head: _Optional[_Union[UpdateHead, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class PushProgress(_message.Message):
    __slots__ = ("done", "total")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class UpdateHead(_message.Message):
    __slots__ = ("base", "layout", "release", "weight", "drafting", "steps", "positions", "loss", "content_bytes", "content_sha256")
    BASE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    DRAFTING_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    CONTENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONTENT_SHA256_FIELD_NUMBER: _ClassVar[int]
    base: str
    layout: str
    release: str
    weight: float
    drafting: Counters
    steps: int
    positions: int
    loss: float
    content_bytes: int
    content_sha256: str
    def __init__(self, base: _Optional[str] = ..., layout: _Optional[str] = ..., release: _Optional[str] = ..., weight: _Optional[float] = ..., drafting: _Optional[_Union[Counters, _Mapping]] = ..., steps: _Optional[int] = ..., positions: _Optional[int] = ..., loss: _Optional[float] = ..., content_bytes: _Optional[int] = ..., content_sha256: _Optional[str] = ...) -> None: ...

class PurgeRequest(_message.Message):
    __slots__ = ("what",)
    class What(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        WHAT_UNSPECIFIED: _ClassVar[PurgeRequest.What]
        TEXTS: _ClassVar[PurgeRequest.What]
        ALL: _ClassVar[PurgeRequest.What]
    WHAT_UNSPECIFIED: PurgeRequest.What
    TEXTS: PurgeRequest.What
    ALL: PurgeRequest.What
    WHAT_FIELD_NUMBER: _ClassVar[int]
    what: PurgeRequest.What
    def __init__(self, what: _Optional[_Union[PurgeRequest.What, str]] = ...) -> None: ...

class PurgeReply(_message.Message):
    __slots__ = ("freed_bytes",)
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    freed_bytes: int
    def __init__(self, freed_bytes: _Optional[int] = ...) -> None: ...
