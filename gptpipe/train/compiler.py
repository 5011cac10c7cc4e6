"""torch.compile: what is compiled, where that is kept for the next run, and going on without it."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

import torch

from gptpipe import storage
from gptpipe.config import TrainConfig
from gptpipe.model.gpt import GPT
from gptpipe.train.distributed import Ranks
from gptpipe.train.state import TrainState

log = logging.getLogger(__name__)
VARIABLES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
PATIENCE = 5.0  # seconds after which a compiler that did not end is told so once more


class CompilerTooSlow(Exception):
    """The compiler took more than its time."""


def keep_compiled() -> None:
    """Have what is compiled kept in this machine's home, so that a second run of the same shape does not compile.

    torch's own place is the folder for temporary files, which a restart of the machine empties. A folder that
    somebody has named stays. Call it before anything is compiled.
    """
    home = storage.cache_home() / "compiled"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(bytes(4096))
    except OSError as error:
        log.warning("what is compiled is not kept for the next run: %s: %s", home, error.strerror)
        return
    for name, folder in VARIABLES.items():
        os.environ.setdefault(name, str(home / folder))


def compile_blocks(model: GPT, config: TrainConfig, ranks: Ranks, state: TrainState) -> None:
    """Have each block compiled at its first call, where that is asked for; the state knows.

    Blocks, not the whole: that takes seconds instead of minutes, and gradients are sent while others are made.
    """
    compiles = ranks.device.type == "cuda" if config.compile == "auto" else config.compile
    if state.compiled is not None and state.step:
        compiles = state.compiled
    if compiles:
        for block in model.h:
            block.compile(dynamic=False)
    state.compiled = bool(compiles)


def do_without(model: GPT, state: TrainState) -> None:
    """Go back to blocks that are not compiled."""
    for block in model.h:
        block._compiled_call_impl = None
    state.compiled = False


def uncompiled(state: TrainState) -> AbstractContextManager[None]:
    """While what runs is not to be compiled for its shape, though training is."""
    if not state.compiled:
        return nullcontext()
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Give what is done in the main thread so much time.

    Raises:
        CompilerTooSlow: it took longer; it is left where it was.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(_number: int, _frame: FrameType | None) -> None:
        raise CompilerTooSlow(f"it took more than train.compile_timeout, {seconds:g} seconds")

    before, began = signal.signal(signal.SIGALRM, expire), time.monotonic()
    # once more, if somebody on the way swallows it
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # somebody else's timer runs on
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - began)), interval)
