"""sweep: many trainings that differ in a few keys, side by side, and which of them is best."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.exceptions import CancelledRun, TerminationSignal
from prefect.states import Completed
from pydantic import Field

from flows.import_weights import ImportParameters, import_weights
from flows.server import endings, report
from flows.server.names import named
from flows.server.report import CancelWatch
from flows.tokenize import TokenizeParameters, tokenize
from flows.train import hosts_of
from gptpipe.config import PipelineConfig, SweepConfig, parse
from gptpipe.config.form import FormSection, form_of, pipeline_form, values_of
from gptpipe.config.names import texts
from gptpipe.config.settings import settings
from gptpipe.dataset.cache import TokenCache
from gptpipe.errors import Preempted
from gptpipe.launch.torchrun import Cancelled
from gptpipe.pipeline.checks import check_pipeline
from gptpipe.pipeline.sweep import Places, Stops
from gptpipe.pipeline.sweep import sweep as search
from gptpipe.sweep.plan import Plan
from gptpipe.sweep.result import SweepResult
from gptpipe.tracking.client import RunLink, Tracking
from gptpipe.tracking.plots import parallel_coordinates
from gptpipe.tracking.registry import starting_weights
from gptpipe.weights.find import read_weights

if TYPE_CHECKING:
    SweepOptions = FormSection
    PipelineOptions = FormSection
else:
    SweepOptions = form_of(SweepConfig, "SweepOptions", key="sweep.")
    PipelineOptions = pipeline_form("SweepPipelineOptions")


class SweepParameters(FormSection):
    """What is searched, and what all trainings have in common."""

    sweep: SweepOptions = Field(title="Sweep", description="Which keys are searched, and how")
    pipeline: PipelineOptions | None = Field(
        None, title="Trainings", description="Preset, texts and settings that all trainings have in common"
    )

    @property
    def plan(self) -> Plan:
        """Raises UserError: a key, a value or a setting with which there is no sweep."""
        chosen = self.sweep.model_dump(mode="json", exclude_none=True)
        base: PipelineConfig = parse(PipelineConfig, values_of(self.pipeline) if self.pipeline else {})
        sweep: SweepConfig = parse(SweepConfig, chosen, where="sweep")
        return Plan.of(base, sweep)


def _name(parameters: SweepParameters) -> str:
    plan = parameters.plan
    keys = " ".join(each.key.rpartition(".")[2] for each in plan.space)
    return " · ".join([f"sweep {plan.sweep.name or plan.sweep.method}", keys, texts(plan.base.data.corpus)])


@flow(
    name="sweep",
    flow_run_name=named(_name),
    on_completion=[endings.last_word],
    on_failure=[endings.last_word],
)
def sweep(parameters: SweepParameters) -> Any:
    """Tokenize once, train all that the search asks for, and say which training is best. What is done stays done."""
    try:
        result, run = run_sweep(parameters.plan)
        return Completed(message=result.sentence, data=(result, run))
    except (Cancelled, CancelledRun) as stopped:
        return endings.cancelled(stopped)
    except (Preempted, TerminationSignal) as stopped:
        endings.go_on_later(stopped)


def run_sweep(plan: Plan) -> tuple[SweepResult, RunLink]:
    """Every stage, and what the trainings came to; they hold this machine together, and share it out."""
    here = settings()
    tracking, init, data = Tracking.of(here), "", plan.base.data
    check_pipeline(plan.base, here.storage_url, tracking)
    if weights := starting_weights(plan.base, tracking):
        context = plan.base.init_context_length
        init = import_weights(ImportParameters(weights=weights, context_length=context, tokenizer=data.tokenizer))
        data = data.model_copy(update={"tokenizer": data.tokenizer or read_weights(init).tokenizer})
    dataset = tokenize(TokenizeParameters(data=data))
    places = Places(
        dataset.dataset, init, here.storage_url, here.sweeps_database, tracking, TokenCache(limit=here.cache_bytes)
    )
    hosts = hosts_of(here)
    with hosts.this_machine() if hosts else nullcontext(), CancelWatch().running() as was_cancelled:
        stops = Stops(was_cancelled=was_cancelled, is_cancelling=report.is_cancelling)
        result, run = search(plan, places, tags=report.run_tags(), stops=stops)
    page = f"[Run in MLflow]({run.url})\n\n{result.markdown()}"
    picture = parallel_coordinates(result) or None
    report.page("sweep", page, picture, description="The trainings of the sweep", shows="the trainings side by side")
    return result, run
