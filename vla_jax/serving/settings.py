"""What can be set of a server."""

from __future__ import annotations

import dataclasses
import ipaddress
import math
from typing import Literal


@dataclasses.dataclass(frozen=True)
class DimensionLimits:
    """What one dimension of an action is held to, beside the ActionSpec's bounds; in its unit.

    Attributes:
      low, high: narrower bounds.
      max_change: the most that it may differ from the action before.
      workspace: (low, high) of the position that deltas in this dimension move, e.g. of the
        gripper's x for position_x; in the unit of the state.
      state: name of that position among the policy's state features, or its index in what robots
        send as their state, as text. Needed with a workspace.
      hold: what holds the position; None: 0 for "m", "rad" and "unknown", which are deltas, the
        value commanded last for a gripper, 0 for a flag.
      keep: the value commanded last holds the position, as in absolute joint angles.
    """

    low: float | None = None
    high: float | None = None
    max_change: float | None = None
    workspace: tuple[float, float] | None = None
    state: str = ""
    hold: float | None = None
    keep: bool = False

    def __post_init__(self):
        for name in ("low", "high", "max_change", "hold"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        if self.max_change is not None and self.max_change <= 0:
            raise ValueError(f"max_change must be above 0, got {self.max_change}")
        if self.workspace is not None:
            low, high = self.workspace
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"workspace {self.workspace} must be finite and low < high")
            if not self.state:
                raise ValueError("a workspace needs `state`: which number of the state it bounds")
        if self.keep and self.hold is not None:
            raise ValueError("`hold` and `keep` exclude each other")


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """Attributes:
    host, port: of HTTP and websockets; port 0 takes a free one.
    grpc_port: of gRPC; 0 takes a free one, -1 leaves it out.
    token_file: a file with the token that clients must send; "": none is needed.
    tls_certificate, tls_key: PEM files; "": without encryption.
    deadline_s: a robot waits at most so long for an action; then it is told to hold.
    batch_wait_s: when the model is free, a request waits at most so long for others that could
      share its call. It does not wait if the batch is full or if all robots of the last second are
      in it.
    max_batch: requests in one model call; 0: the largest that the policy is compiled for.
    max_queue: requests that wait for the model; more are told to hold.
    max_sessions: robots at once.
    session_idle_s: a robot that has not asked for so long is forgotten.
    max_requests_per_s: of one robot, on average over a second.
    max_message_mib, max_image_side: of one message, and of its pictures in pixels.
    max_frame_age_s: of the pictures, if the robot sends their time; 0: any.
    read_s: a message of HTTP must have arrived after so long.
    execute_steps: actions that are done of a chunk before the model looks again, where the server
      carries the chunk out; also what it assumes of robots that are given the whole chunk, 0: all.
    ensemble_decay: of temporal ensembling, where the server carries the chunk out. Neither this nor
      execute_steps given: chunks are carried out as the bundle says.
    drain_s: after SIGTERM, requests in flight have so long to finish.
    cameras: the policy's name of a camera -> the robots' name of it.
    demo: the page for people also drives the table-top simulator with the policy; needs the extra
      `sim`.
    demo_world: which table-top world.
    limits: name of a dimension of the action -> what it is held to.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int = 8001
    token_file: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    deadline_s: float = 1.0
    batch_wait_s: float = 0.01
    max_batch: int = 0
    max_queue: int = 64
    max_sessions: int = 256
    session_idle_s: float = 60.0
    max_requests_per_s: float = 100.0
    max_message_mib: float = 8.0
    max_image_side: int = 2048
    max_frame_age_s: float = 1.0
    read_s: float = 10.0
    execute_steps: int = 0
    ensemble_decay: float | None = None
    drain_s: float = 10.0
    demo: bool = False
    demo_world: Literal["demo", "full"] = "demo"
    cameras: dict[str, str] = dataclasses.field(default_factory=dict)
    limits: dict[str, DimensionLimits] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in (
            "deadline_s",
            "max_queue",
            "max_sessions",
            "session_idle_s",
            "max_requests_per_s",
            "max_message_mib",
            "max_image_side",
            "read_s",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("batch_wait_s", "max_batch", "max_frame_age_s", "execute_steps", "drain_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key need each other")
        if not (self.token_file or _is_loopback(self.host)):
            print(f"warning: no token_file: whoever reaches {self.host} can ask for actions")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
