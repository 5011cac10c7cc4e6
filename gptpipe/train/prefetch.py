"""Batches on the device before they are needed: on a GPU copied from pinned memory beside the step that runs."""

from __future__ import annotations

import torch

from gptpipe.dataset.loader import TrainBatch, TrainLoader


class DeviceBatches:
    """The batches of a loader, on a device, one ahead on a GPU.

    `samples_seen` of the state is that of the last batch given out, not of the one that is on its way.
    """

    def __init__(self, loader: TrainLoader, device: torch.device) -> None:
        self._loader, self._device = loader, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._next: tuple[TrainBatch, int] | None = None

    def next(self) -> tuple[TrainBatch, int]:
        """The next batch, and the number of samples that are read once it is."""
        if self._stream is None:
            return self._loader.next_batch(), self._loader.samples_seen
        batch, seen = self._next or self._fetch()
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in (batch.inputs, batch.targets):
            tensor.record_stream(current)
        self._next = self._fetch()
        return batch, seen

    def _fetch(self) -> tuple[TrainBatch, int]:
        batch = self._loader.next_batch()
        with torch.cuda.stream(self._stream):
            inputs = batch.inputs.pin_memory().to(self._device, non_blocking=True)
            targets = batch.targets.pin_memory().to(self._device, non_blocking=True)
        return batch._replace(inputs=inputs, targets=targets), self._loader.samples_seen
