"""What a whole pipeline came to, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from gptpipe.corpus.build import TokenizeResult
from gptpipe.evaluation.result import Evaluation
from gptpipe.generation.generate import Samples, samples_of
from gptpipe.launch.training import TrainResult
from gptpipe.tracking.client import RunLink
from gptpipe.tracking.registry import Registered

NOT_REGISTERED = "not registered: MLflow was away; run the same again once it is back"


@dataclass(frozen=True)
class Skipped:
    """A pipeline that ended after its first stage, since there was nothing to learn.

    Attributes:
        reason: why, in a sentence.
    """

    dataset: TokenizeResult
    reason: str

    is_skipped: ClassVar[bool] = True

    @property
    def sentence(self) -> str:
        return f"skipped: {self.reason}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"dataset": self.dataset.as_dict(), "skipped": self.reason}


@dataclass(frozen=True)
class PipelineResult:
    """Each stage's result.

    Attributes:
        run: the training's run in MLflow; None where MLflow did not answer.
        samples: of every checkpoint of the training, by step.
        model: the registered version; None where nothing was registered.
        export: folder or URL of the model as transformers reads it; empty where none was asked for.
        waits_for_mlflow: whether the model was to be registered, and MLflow did not answer.
        is_news: whether something came of it now and not at an earlier time: what became of the model was told, a
            person asked, the model exported.
    """

    dataset: TokenizeResult
    training: TrainResult
    run: RunLink | None
    evaluation: Evaluation
    samples: list[Samples]
    model: Registered | None = None
    export: str = ""
    is_news: bool = False
    waits_for_mlflow: bool = False

    @property
    def is_skipped(self) -> bool:
        """Whether all of it was there: the same texts, settings and decision as of a pipeline that has ended."""
        stages = (self.dataset, self.training, self.evaluation, self.best_samples)
        return all(stage.already_done for stage in stages) and not self.is_news and not self.waits_for_mlflow

    @property
    def best_samples(self) -> Samples:
        """Those of the best checkpoint."""
        return samples_of(self.training.best_checkpoint, self.samples)

    @property
    def sentence(self) -> str:
        """Whether anything was to do, how good the model is, and what became of it."""
        done = f"{self.training.steps:,} steps"
        if self.dataset.already_done and self.training.already_done:
            done = "nothing is new: the texts and the settings are those of a training that is done"
            done = f"skipped: {done}" if self.is_skipped else done
        verdict = f"; {NOT_REGISTERED}" if self.waits_for_mlflow else ""
        if self.model:
            outcome = "promoted: " if self.model.decision.promote else "not promoted: "
            told = ("" if self.model.waits else outcome) + self.model.decision.reason
            verdict = f"; {self.model.name} version {self.model.version} {told}"
        return f"{done}; cross-entropy {self.evaluation.cross_entropy:.3f} nats per token{verdict}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        run = {"run_id": self.run and self.run.run_id, "experiment_id": self.run and self.run.experiment_id}
        return {
            "dataset": self.dataset.as_dict(),
            "training": {**self.training.as_dict(), **run},
            "evaluation": self.evaluation.as_dict(),
            "samples": {**self.best_samples.as_dict(), "through": [each.as_dict() for each in self.samples]},
            "model": self.model and self._model(self.model),
            "export": self.export,
        }

    def _model(self, model: Registered) -> dict[str, Any]:
        links = {"how_to_open": self.run.how_to_open, "compare": self.run.compare_url} if self.run else {}
        return {
            "name": model.name,
            "version": model.version,
            "uri": model.uri,
            **links,
            "champion": model.decision.promote,
            "decision": model.decision.reason,
        }
