"""The nodes that have joined a gang, and whether one fits to the others."""

from __future__ import annotations

from dataclasses import dataclass

from gptpipe.errors import UserError
from gptpipe.launch.channel import Channel
from gptpipe.launch.clocks import check_clock
from gptpipe.launch.job import Job, Outcome
from gptpipe.launch.messages import About
from gptpipe.version import __version__
from gptpipe.wording import counted


@dataclass
class Member:
    """A node that has joined."""

    channel: Channel
    about: About
    ready: bool = False
    outcome: Outcome | None = None
    has_first_rank: bool = False

    @property
    def name(self) -> str:
        return f"{self.about.name} ({self.about.address})"


def check_member(about: About, others: list[About], job: Job) -> None:
    """Refuse a node that would fail or spoil the result.

    Raises:
        UserError: it has another version, no GPU where the others have, or a clock of its own.
    """
    import torch

    name = about.name
    for what, theirs, ours in (
        ("gptpipe", about.version, __version__),
        ("torch", about.torch, torch.__version__.split("+")[0]),
    ):
        if theirs != ours:
            raise UserError(
                f"node {name} has {what} {theirs}, the training's parent {ours}",
                where=name,
                hint=f"install {what} {ours} there and start its worker again",
            )
    wants_gpu = job.train.device == "cuda" or (job.train.device == "auto" and any(o.gpus for o in others))
    if wants_gpu and about.gpus < job.train.nproc:
        raise UserError(
            f"node {name} has {counted(about.gpus, 'GPU')} for {counted(job.train.nproc, 'rank')}",
            where=name,
            hint="stop its worker, or lower train.nproc, or set train.device=cpu",
        )
    if job.train.device == "auto" and about.gpus and others and not others[0].gpus:
        raise UserError(
            f"node {name} has GPUs, node {others[0].name} has none", where="train.device", hint="set it to cpu"
        )
    check_clock(about.skew, f"node {name}")
