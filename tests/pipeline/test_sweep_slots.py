"""What each training of a sweep has of a machine: GPUs of its own, or a share of the cores."""

from __future__ import annotations

import pytest

from gptpipe.config import TrainConfig
from gptpipe.cores import usable_cores
from gptpipe.errors import UserError
from gptpipe.pipeline.sweep import Slot, slots


def names(found: list[Slot]) -> list[str]:
    return [slot.variables["CUDA_VISIBLE_DEVICES"] for slot in found]


def test_gpus_are_shared_out_and_none_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert names(slots(TrainConfig(nproc=2), 0, cuda=8)) == ["0,1", "2,3", "4,5", "6,7"]
    assert names(slots(TrainConfig(), 2, cuda=8)) == ["0", "1"]
    assert names(slots(TrainConfig(nproc=3), 0, cuda=8)) == ["0,1,2", "3,4,5"]


def test_only_gpus_that_this_process_may_see_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-5f3a,7")
    assert names(slots(TrainConfig(), 0, cuda=3)) == ["4", "GPU-5f3a", "7"]


def test_more_trainings_than_there_are_gpus_for_are_refused() -> None:
    with pytest.raises(UserError, match="3 trainings at once of 2 ranks each; torch sees 4 GPUs") as refused:
        slots(TrainConfig(nproc=2), 3, cuda=4)
    assert (refused.value.where, refused.value.hint) == ("sweep.parallel=3", "set it to 2")


def test_cores_are_shared_out_where_there_is_no_gpu() -> None:
    assert slots(TrainConfig(), 0, cuda=0) == [Slot()]
    assert slots(TrainConfig(), 2, cuda=0) == [Slot(threads=max(1, usable_cores() // 2))] * 2
    assert slots(TrainConfig(threads=3), 2, cuda=0) == [Slot(threads=3)] * 2
