from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Pixels(_message.Message):
    __slots__ = ("height", "width", "rgb")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    RGB_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    rgb: bytes
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ..., rgb: _Optional[bytes] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("pixels", "file")
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    pixels: Pixels
    file: bytes
    def __init__(self, pixels: _Optional[_Union[Pixels, _Mapping]] = ..., file: _Optional[bytes] = ...) -> None: ...

class ActRequest(_message.Message):
    __slots__ = ("images", "instruction", "state", "session", "reset", "whole_chunk", "timestamp", "spec", "last_action", "temperature", "seed")
    class ImagesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Image
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Image, _Mapping]] = ...) -> None: ...
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    WHOLE_CHUNK_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    LAST_ACTION_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    images: _containers.MessageMap[str, Image]
    instruction: str
    state: _containers.RepeatedScalarFieldContainer[float]
    session: str
    reset: bool
    whole_chunk: bool
    timestamp: float
    spec: str
    last_action: _containers.RepeatedScalarFieldContainer[float]
    temperature: float
    seed: int
    def __init__(self, images: _Optional[_Mapping[str, Image]] = ..., instruction: _Optional[str] = ..., state: _Optional[_Iterable[float]] = ..., session: _Optional[str] = ..., reset: _Optional[bool] = ..., whole_chunk: _Optional[bool] = ..., timestamp: _Optional[float] = ..., spec: _Optional[str] = ..., last_action: _Optional[_Iterable[float]] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class Row(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class ActReply(_message.Message):
    __slots__ = ("actions", "valid", "why", "reason", "clipped", "tokens", "text", "plan", "queue_s", "model_s", "total_s", "batch")
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    VALID_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CLIPPED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    MODEL_S_FIELD_NUMBER: _ClassVar[int]
    TOTAL_S_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    actions: _containers.RepeatedCompositeFieldContainer[Row]
    valid: bool
    why: str
    reason: str
    clipped: _containers.RepeatedScalarFieldContainer[str]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    text: str
    plan: str
    queue_s: float
    model_s: float
    total_s: float
    batch: int
    def __init__(self, actions: _Optional[_Iterable[_Union[Row, _Mapping]]] = ..., valid: _Optional[bool] = ..., why: _Optional[str] = ..., reason: _Optional[str] = ..., clipped: _Optional[_Iterable[str]] = ..., tokens: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., plan: _Optional[str] = ..., queue_s: _Optional[float] = ..., model_s: _Optional[float] = ..., total_s: _Optional[float] = ..., batch: _Optional[int] = ...) -> None: ...

class AnswerRequest(_message.Message):
    __slots__ = ("image", "question")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    image: Image
    question: str
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., question: _Optional[str] = ...) -> None: ...

class AnswerReply(_message.Message):
    __slots__ = ("answer",)
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    answer: str
    def __init__(self, answer: _Optional[str] = ...) -> None: ...

class ResetRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class ResetReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Description(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...
