"""What the server does by itself: a run that has fallen silent has crashed, and a retraining that crashed goes on."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

SILENT = "gptpipe: a silent run has crashed"
CANCELLED = "gptpipe: a silent run that was being cancelled is cancelled"
GOES_ON = "gptpipe: a crashed retraining goes on"
TAG = "gptpipe"  # of every deployment that is ours, and so of its runs
CRASHED_ONCE_MORE = "LostMachine"  # the state's name in which a crashed run waits to go on
SILENCE = timedelta(seconds=90)  # three heartbeats
_RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})


def planned(tag: str, retrainings: Iterable[UUID]) -> list[AutomationCore]:
    """All of them.

    None forces a state: a heartbeat can arrive after the run's end, and only the server's own rules keep a run in the
    state in which it ended.

    Args:
        tag: of the deployments whose runs are watched.
        retrainings: the deployments whose runs go on.
    """
    ids = [f"prefect.deployment.{identity}" for identity in retrainings]
    tagged = ResourceSpecification({"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{tag}"})
    seconds = f"{SILENCE.total_seconds():g}"
    return [
        AutomationCore(
            name=SILENT,
            description=f"No heartbeat for {seconds} s: its process, its machine or the network is gone.",
            # a run is pending while its process starts, on a machine that may go away as well
            trigger=_silence(tagged, {"prefect.flow-run.heartbeat", "prefect.flow-run.Pending"}),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED, message=f"no heartbeat for {seconds} s: its process or machine is gone"
                )
            ],
        ),
        AutomationCore(
            name=CANCELLED,
            description=f"Nothing for {seconds} s after it was asked to stop: nobody is left who could.",
            trigger=_silence(tagged, {"prefect.flow-run.Cancelling"}),
            actions=[
                ChangeFlowRunState(state=StateType.CANCELLED, message="cancelled; its process or machine was gone")
            ],
        ),
        AutomationCore(
            name=GOES_ON,
            description="It goes on from its last checkpoint, where there is a worker.",
            trigger=EventTrigger(
                match=_RUNS,
                match_related=ResourceSpecification(
                    {"prefect.resource.role": "deployment", "prefect.resource.id": ids}
                ),
                expect={"prefect.flow-run.Crashed"},
                posture=Posture.Reactive,
                threshold=1,
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.SCHEDULED,
                    name=CRASHED_ONCE_MORE,
                    message="crashed with its machine or its process; it goes on from the last checkpoint",
                )
            ],
        ),
    ]


def _silence(tagged: ResourceSpecification, after: set[str]) -> EventTrigger:
    """Nothing of a run for `SILENCE` after one of these events."""
    return EventTrigger(
        match=_RUNS,
        match_related=tagged,
        for_each={"prefect.resource.id"},
        after=after,
        expect={"prefect.flow-run.*"},
        posture=Posture.Proactive,
        threshold=1,
        within=SILENCE,
    )


def apply(client: SyncPrefectClient, planned: list[AutomationCore]) -> None:
    """Make them, or make them as they should be; the same again changes nothing."""
    for automation in planned:
        known = client.read_automations_by_name(automation.name)
        if not known:
            client.create_automation(automation)
        elif AutomationCore.model_validate(known[0].model_dump(include=set(AutomationCore.model_fields))) != automation:
            client.update_automation(known[0].id, automation)
