"""Checkpoints off the critical path: copied to host memory at once, written and uploaded while training goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gptpipe.errors import UserError

log = logging.getLogger(__name__)
ATTEMPTS = 3
PAUSE = 2.0  # seconds before another attempt, growing
PATIENCE = 300.0  # seconds for what is needed; ranks that wait for this one give up after more


@dataclass(frozen=True)
class Copies:
    """Copies in host memory that stay as they are until the next ones are taken.

    Attributes:
        ready: waits until they are whole; whoever reads them calls it first.
    """

    tensors: dict[str, Tensor]
    ready: Callable[[], None] = lambda: None


class HostCopies:
    """Buffers in host memory that tensors are copied to, the same ones every time: fresh memory is slow.

    From a GPU they are pinned, and the copies are made on a stream of their own: neither the host nor the next step's
    passes wait for them. Only what writes to the tensors has to, by `hold_update`.
    """

    def __init__(self, device: torch.device) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._copied: torch.cuda.Event | None = None

    def reserve(self, tensors: dict[str, Tensor]) -> None:
        """Take the memory for copies of such tensors."""
        for name, tensor in tensors.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape:
                pinned = tensor.device.type == "cuda"
                self._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)

    def take(self, tensors: dict[str, Tensor]) -> Copies:
        """Copies of the tensors as they are now, contiguous. The ones before must not be needed any more."""
        self.reserve(tensors)
        if self._stream is None:
            self._copy(tensors)
            return Copies({name: self._buffers[name] for name in tensors})
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            self._copy(tensors)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(self._stream)
        return Copies({name: self._buffers[name] for name in tensors}, self._copied.synchronize)

    def hold_update(self) -> None:
        """Have what the device does from now on wait for the copies that are under way; the host does not."""
        if self._stream is not None and self._copied is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(self._copied)
            self._copied = None

    def _copy(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self._buffers[name].copy_(tensor.detach(), non_blocking=True)


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
        self._work, self._what = work, what
        self._thread = threading.Thread(target=self._do, args=(work, what), name="saver", daemon=True)
        self._thread.start()

    def again(self) -> None:
        """Do the newest piece again, which failed, until it goes well.

        Raises:
            Exception: what went wrong the last time, once `PATIENCE` is over.
        """
        until = time.monotonic() + PATIENCE
        while self.failed is not None:
            self._do(self._work, self._what, "training waits")
            if self.failed is not None and time.monotonic() > until:
                raise self.failed

    def _do(self, work: Callable[[], None], what: str, then: str = "training goes on") -> None:
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
                    log.warning("%s not saved, %s: %s", what, then, reason)
            else:
                self.failed = None
                log.info("%s in %.1f s", what, time.perf_counter() - began)
                return
