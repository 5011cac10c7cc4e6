"""The loop in this process: bad steps end it by name, a roll-back, what is refused, how many windows at once."""

from __future__ import annotations

import gc
import json
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from gptpipe.config import ModelConfig, TrainConfig
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import open_dataset
from gptpipe.dataset.locate import documents_at
from gptpipe.dataset.stream import TokenStream
from gptpipe.errors import UserError
from gptpipe.launch.job import Job, Outcome
from gptpipe.launch.signals import StopRequest
from gptpipe.model import precision as precisions
from gptpipe.train import energy, loop, runtime
from gptpipe.train.budget import MemoryBudget
from gptpipe.train.distributed import Ranks
from gptpipe.train.reporter import Reporter
from gptpipe.train.runtime import check_memory
from gptpipe.train.saver import Saver
from gptpipe.train.spikes import SpikeGuard
from gptpipe.train.state import TrainState
from gptpipe.train.step import Stepper
from gptpipe.weights.checkpoint import list_checkpoints, newest_checkpoint
from tests.fixtures.tokenizers import VOCABULARY, small_tokenizer
from tests.fixtures.trainings import MODEL, TRAIN, make_dataset, text_of

Run = Callable[..., Outcome]


class NeverAsked:
    reason = ""

    def asked(self) -> bool:
        return False


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Some ten thousand tokens, of which there are `VOCABULARY`: nothing here must catch a training before its end."""
    folder = tmp_path_factory.mktemp("small")
    return make_dataset(folder, small_tokenizer(folder / "tokenizer", map(text_of, range(60))))


@pytest.fixture
def run(tmp_path: Path, dataset: str) -> Run:
    """Trains a small model here; keywords are fields of `train`."""
    (tmp_path / "job").mkdir()
    threads = torch.get_num_threads()

    def train(resume: str = "", **given: Any) -> Outcome:
        job = Job(
            id="x",
            model=ModelConfig(**MODEL, vocab_size=VOCABULARY),
            train=TrainConfig(**{**TRAIN, **given}),
            training=str(tmp_path / "training"),
            dataset=dataset,
            folder=tmp_path / "job",
            cache=tmp_path / "cache",
            cache_bytes=10**9,
            resume=resume,
            launcher=os.getpid(),
        )
        gc.freeze()  # as a rank's process does: a training collects its own garbage at every checkpoint
        try:
            return loop.train(job, NeverAsked())  # type: ignore[arg-type]
        finally:
            gc.unfreeze()
            torch.set_num_threads(threads)

    return train


def lines(tmp_path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (tmp_path / "job" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_gradients_that_stay_bad_end_the_training_and_name_the_documents(
    run: Run, tmp_path: Path, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Stepper.backward

    def bad_from_step_eight(stepper: Stepper, batch: Any) -> Any:
        loss = real(stepper, batch)
        if stepper.state.step >= 7:
            stepper.model.wte.weight.grad.fill_(float("nan"))  # type: ignore[union-attr]
        return loss

    monkeypatch.setattr(Stepper, "backward", bad_from_step_eight)
    with pytest.raises(UserError, match="not finite in 4 steps in a row; step 9 is kept") as caught:
        run(stop_after_bad_steps=4)
    assert caught.value.where == "step 11"
    assert "corpus:" in str(caught.value)
    assert "\n" not in str(caught.value)
    kept = newest_checkpoint(str(tmp_path / "training"))
    assert kept is not None
    assert all(value.isfinite().all() for value in kept.tensors("model.safetensors").values())
    monkeypatch.setattr(Stepper, "backward", real)
    assert run(resume=kept.url).status == "finished"  # and it can go on


def test_documents_at_is_what_counting_gives(dataset: str, tmp_path: Path) -> None:
    stream = TokenStream(open_dataset(dataset), "train", TokenCache(tmp_path, 10**9))
    separators = np.flatnonzero(stream.read(0, stream.length) == stream.end_of_text)
    everything = documents_at(stream, np.arange(stream.length))
    assert len(everything) == len(separators)
    tokenizer, begin = open_dataset(dataset).load_tokenizer(), 0
    for name, end in zip(everything, separators.tolist(), strict=True):
        number = int(name.removeprefix("corpus:").split(".")[0])
        assert tokenizer.decode(stream.read(begin, end).tolist()) == text_of(number)
        begin = end + 1
    places = np.array([0, 5, int(separators[2]), int(separators[2]) + 1, stream.length - 1])
    numbers = np.searchsorted(separators, places)
    assert documents_at(stream, places) == [everything[n] for n in sorted(set(numbers.tolist()))]


@pytest.mark.slow
def test_a_roll_back_takes_weights_and_moments_of_the_checkpoint_and_goes_on_in_the_samples(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    judged = []

    def spike_at_eleven(guard: SpikeGuard, loss: float) -> str:
        judged.append(loss)
        return "spike" if len(judged) == 11 else "ordinary"

    seen: dict[int, dict[str, torch.Tensor]] = {}
    real = loop.Loop.step

    def watched(training: loop.Loop) -> None:
        real(training)
        parts = training.parts
        seen[parts.state.step] = {n: v.clone() for n, v in parts.model.state_dict().items()}

    monkeypatch.setattr(SpikeGuard, "judge", spike_at_eleven)
    monkeypatch.setattr(loop.Loop, "step", watched)
    outcome = run(spike_action="rollback")
    assert outcome.status == "finished"
    assert [r.message.split(", ")[-1] for r in caplog.records] == ["back to the weights of step 9"]
    assert all(torch.equal(seen[11][name], seen[9][name]) for name in seen[9])
    assert not torch.equal(seen[12]["wte.weight"], seen[11]["wte.weight"])
    logged = lines(tmp_path)
    assert [line["step"] for line in logged] == list(range(1, 25))
    assert logged[-1]["train/skipped_steps"] == 1


def test_another_value_that_decides_the_result_is_refused_by_name(run: Run, tmp_path: Path) -> None:
    run(steps=6)
    newest = newest_checkpoint(str(tmp_path / "training"))
    assert newest is not None
    with pytest.raises(UserError, match=r"other values of train\.learning_rate, train\.steps") as caught:
        run(resume=newest.url, steps=12, learning_rate=1e-3, log_every=2)
    assert caught.value.where == newest.url


@pytest.mark.slow
def test_an_upload_that_fails_does_not_stop_training_but_the_last_must_be_saved(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from gptpipe.train import checkpointing as resume

    monkeypatch.setattr(loop, "Saver", partial(Saver, attempts=1, pause=0.0))
    real, steps = resume.write, []

    def fails_in_the_middle(job: Job, taken: Any, metrics: bytes) -> None:
        steps.append(taken.state.step)
        if len(steps) in (2, 3) or len(steps) >= never_after:
            raise UserError("away", where="s3://bucket")
        real(job, taken, metrics)

    never_after = 1000
    monkeypatch.setattr(resume, "write", fails_in_the_middle)
    assert run(steps=15).status == "finished"
    assert steps == [3, 6, 9, 12, 15]
    assert sum("training goes on" in record.message for record in caplog.records) == 2
    never_after = 0
    with pytest.raises(UserError, match="away"):
        run(steps=6)


def test_the_best_checkpoint_is_waited_for_and_another_one_is_not(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the model that is registered would be another one than without the failure."""
    from gptpipe.train import checkpointing as resume

    monkeypatch.setattr(loop, "Saver", partial(Saver, attempts=1, pause=0.0))
    real, steps = resume.write, []

    def away(job: Job, taken: Any, metrics: bytes) -> None:
        steps.append(taken.state.step)
        if taken.state.step == 2 or (taken.state.step == 3 and steps.count(3) < 3):
            raise UserError("away", where="s3://bucket")
        real(job, taken, metrics)

    monkeypatch.setattr(resume, "write", away)
    run(steps=5, validate_every=3, checkpoint_every=1, keep_checkpoints=9)  # at step 3 it is validated first
    assert steps == [1, 2, 3, 3, 3, 4, 5]
    assert [checkpoint.step for checkpoint in list_checkpoints(str(tmp_path / "training"))] == [1, 3, 4, 5]


def test_metrics_of_a_checkpoint_are_there_before_it_counts(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right after the commit, a training would go on from there, and the lines would be gone."""
    from gptpipe.train import checkpointing as resume

    whole, seen = resume.write_checkpoint, []

    def looking(training: str, step: int, **given: Any) -> Any:
        written = (tmp_path / "training" / "metrics.jsonl").read_text().splitlines()
        seen.append((step, json.loads(written[-1])["step"]))
        return whole(training, step, **given)

    monkeypatch.setattr(resume, "write_checkpoint", looking)
    run(steps=6)
    assert seen == [(3, 3), (6, 6)]


def test_numbers_that_are_logged(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Energy is one of them where the processor counts it: a folder like Linux's, whose counter has gone on."""
    zone = tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    for name, content in {"name": "package-0", "max_energy_range_uj": "99999999", "energy_uj": "0"}.items():
        (zone / name).write_text(content)
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    real = Reporter.begin

    def begin(self: Reporter) -> None:
        real(self)
        (zone / "energy_uj").write_text("36000000")

    monkeypatch.setattr(Reporter, "begin", begin)
    run(validate_train=True)
    found = lines(tmp_path)
    names = {name for line in found for name in line}
    assert names == {
        "step",
        "tokens",
        "train/loss",
        "train/learning_rate",
        "train/grad_norm",
        "train/tokens_per_second",
        "train/tokens_per_second_per_device",
        "train/mfu",
        "train/data_wait",
        "train/checkpoint_stall",
        "train/memory_mb",
        "train/skipped_steps",
        "train/active_seconds",
        "train/device_hours",
        "train/flops",
        "train/energy_wh",
        "validation/loss",
        "validation/perplexity",
        "validation/bits_per_byte",
        "validation/train_loss",
    }
    assert 0 <= found[-1]["train/checkpoint_stall"] < 1
    assert found[-1]["train/energy_wh"] == 0.01
    per_token = found[0]["train/flops"] / found[0]["tokens"]
    assert [line["train/flops"] for line in found] == [pytest.approx(per_token * line["tokens"]) for line in found]
    assert found[-1]["validation/train_loss"] < found[0]["train/loss"]


def test_a_model_that_cannot_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks, config = Ranks(0, 0, 2, 2, torch.device("cpu")), TrainConfig()
    model = ModelConfig(n_layer=48, n_embd=1600, n_head=25)
    needed = MemoryBudget.of(model, config, 1, "float32", "cpu", 2).total
    assert 42e9 < needed < 58e9  # 1.5 G parameters, 16 bytes each, and 12 in the copies for checkpoints

    def check(total: float) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": int(total)})())
        check_memory(config, model, ranks, "float32")

    check(2 * needed)
    with pytest.raises(UserError, match=r"n_layer=48, n_embd=1600 on .* needs at least [\d.]+ GB, there are 16\.0"):
        check(32e9)


@pytest.mark.parametrize(
    ("precision", "in_hardware", "warned"), [("bfloat16", 0, 1), ("bfloat16", 1, 0), ("auto", 0, 0)]
)
def test_bfloat16_on_a_cpu_without_it_is_said(
    precision: str, in_hardware: bool, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (runtime, precisions):
        monkeypatch.setattr(module, "has_bfloat16", lambda _: in_hardware)
    config = TrainConfig.model_validate({"precision": precision, "threads": torch.get_num_threads()})
    runtime.settle(config, Ranks(0, 0, 1, 1, torch.device("cpu")), TrainState())
    assert ("no units for bfloat16" in caplog.text) == warned


def test_a_gpu_that_is_full_is_a_line_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.81 GiB of which 1.0 GiB"
        )

    monkeypatch.setattr(loop, "set_up", full)
    given = {"id": "0", "model": ModelConfig(), "train": TrainConfig(), "training": "", "dataset": ""}
    job = Job(**given, folder=tmp_path, cache=tmp_path, cache_bytes=0, launcher=1)
    said = r"memory is full \(3 of 8 GB are free\): CUDA out of memory. Tried to allocate 2.00 GiB — choose a smaller"
    monkeypatch.setattr(runtime, "memory_said", lambda device: "3 of 8 GB are free")
    with pytest.raises(UserError, match=said):
        loop.train(job, StopRequest(0))


def test_the_logged_loss_is_the_mean_since_the_last_one_and_a_stop_between_changes_no_digit(
    run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "job" / "metrics.jsonl"
    run(steps=12, log_every=1, checkpoint_every=0)
    each = {line["step"]: line["train/loss"] for line in lines(tmp_path)}
    file.unlink()
    run(steps=12, log_every=5, checkpoint_every=3, keep_checkpoints=9)
    whole = {line["step"]: line["train/loss"] for line in lines(tmp_path) if "train/loss" in line}
    assert list(whole) == [1, 5, 10, 12]
    assert whole[10] == pytest.approx(sum(each[step] for step in range(6, 11)) / 5, rel=1e-7)
    file.unlink()
    run(steps=12, log_every=5, checkpoint_every=3, resume=str(tmp_path / "training" / "step-00000006"))
    rest = {line["step"]: line["train/loss"] for line in lines(tmp_path) if "train/loss" in line}
    assert rest == {step: whole[step] for step in (10, 12)}
