"""What the parent of a gang and its nodes say to each other, once a node has shown that it belongs to the attempt."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from gptpipe.launch.job import Job, Outcome
from gptpipe.launch.torchrun import Rendezvous


class Said(BaseModel):
    """One message; `kind` says which."""

    model_config = ConfigDict(extra="forbid")


class TakeJob(Said):
    """To a node: what it is to take part in."""

    kind: Literal["job"] = "job"
    job: Job


class Meet(Said):
    """To a node that is ready: where the ranks of all meet."""

    kind: Literal["meet"] = "meet"
    rendezvous: Rendezvous


class Refuse(Said):
    """To a node: it cannot take part, and why."""

    kind: Literal["refuse"] = "refuse"
    message: str
    where: str = ""
    hint: str = ""


class Stop(Said):
    """To a node: finish the step, save, end."""

    kind: Literal["stop"] = "stop"
    reason: str


class Kill(Said):
    """To a node: end without saving."""

    kind: Literal["kill"] = "kill"
    reason: str


class Ready(Said):
    """From a node: its tokens are decoded, its ranks can start."""

    kind: Literal["ready"] = "ready"


class Line(Said):
    """From a node: what a rank printed."""

    kind: Literal["line"] = "line"
    line: str


class Metrics(Said):
    """From the node of rank 0: lines of metrics.jsonl."""

    kind: Literal["metrics"] = "metrics"
    lines: list[dict[str, Any]]


class Ended(Said):
    """From a node: how its ranks ended. `has_first_rank`: whether rank 0 was among them."""

    kind: Literal["ended"] = "ended"
    outcome: Outcome
    has_first_rank: bool = False


class NodeCancelled(Said):
    """From a node: somebody cancelled it."""

    kind: Literal["cancelled"] = "cancelled"


Message = Annotated[
    TakeJob | Meet | Refuse | Stop | Kill | Ready | Line | Metrics | Ended | NodeCancelled, Field(discriminator="kind")
]
MESSAGE: TypeAdapter[Any] = TypeAdapter(Message)


class About(BaseModel):
    """What a node says of itself in its greeting. One of another version, which says something else, is still read.

    Attributes:
        name: of its host. gpus: how many torch sees there.
        clock: its time when it said so, in seconds since 1970. skew: how far it is ahead of the parent's.
        address: where other nodes reach it. interface: the network interface with that address.
    """

    model_config = ConfigDict(extra="ignore")

    name: str
    version: str
    torch: str = ""
    python: str = ""
    gpus: int = 0
    clock: float = 0.0
    skew: float = 0.0
    address: str = ""
    interface: str = ""
