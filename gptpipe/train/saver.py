"""Checkpoints off the critical path: copied to host memory at once, written and uploaded while training goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor

from gptpipe.errors import UserError

log = logging.getLogger(__name__)
ATTEMPTS = 3
PAUSE = 2.0  # seconds before another attempt, growing


class HostCopies:
    """Buffers in host memory that tensors are copied to, the same ones every time: fresh memory is slow.

    From a GPU the buffers are pinned, and all copies are under way before the first is waited for.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies of the tensors, contiguous, that stay as they are until the next call for these names."""
        for name, tensor in tensors.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape:
                pinned = tensor.device.type == "cuda"
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
                self._buffers[name] = buffer
            buffer.copy_(tensor.detach(), non_blocking=True)
        if any(tensor.device.type == "cuda" for tensor in tensors.values()):
            torch.cuda.synchronize()
        return {name: self._buffers[name] for name in tensors}


class Saver:
    """Does one piece of work after another in the background, at most one at a time.

    A piece that fails is tried again, then reported, and the next one is as welcome as ever.

    Attributes:
        failed: what went wrong with the newest piece, None once one has gone well.
    """

    def __init__(self, attempts: int = ATTEMPTS, pause: float = PAUSE) -> None:
        self._attempts, self._pause = attempts, pause
        self._thread: threading.Thread | None = None
        self.failed: Exception | None = None

    def wait(self) -> None:
        """Until nothing is in flight."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def start(self, work: Callable[[], None], what: str) -> None:
        """Begin a piece of work. The one before must have been waited for.

        Args:
            what: its name in the log.
        """
        assert self._thread is None
        self._thread = threading.Thread(target=self._do, args=(work, what), name="saver", daemon=True)
        self._thread.start()

    def _do(self, work: Callable[[], None], what: str) -> None:
        for attempt in range(1, self._attempts + 1):
            began = time.perf_counter()
            try:
                work()
            except Exception as error:
                self.failed = error
                reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                if attempt < self._attempts:
                    log.warning("%s not saved, trying again: %s", what, reason)
                    time.sleep(self._pause * attempt)
                else:
                    log.warning("%s not saved, training goes on: %s", what, reason)
            else:
                self.failed = None
                log.info("%s in %.1f s", what, time.perf_counter() - began)
                return
