"""A flow run that waits until a person has filled in a form: may this model become champion?"""

from __future__ import annotations

import logging
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from uuid import UUID, uuid4

from httpx import HTTPError
from prefect import pause_flow_run
from prefect.client.orchestration import get_client
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Running
from pydantic import Field

from gptpipe.config import PromoteConfig
from gptpipe.errors import UserError
from gptpipe.tracking.aliases import settled
from gptpipe.tracking.registry import Registered

log = logging.getLogger("gptpipe.flows")
_ASK_SECONDS = 5  # between two looks whether there is an answer


class Approval(RunInput):
    """The form."""

    agree: bool = Field(False, title="Make it the champion", description="Off: the champion stays")
    note: str = Field("", title="Note", description="Kept with the decision", max_length=500)


def ask(registered: Registered, promote: PromoteConfig) -> Approval | None:
    """Pause this flow run until a person has answered, here or elsewhere; None where nobody did in time.

    What was answered elsewhere, by `gptpipe approve` or in MLflow, is known there: the form's answer is none then.
    """
    alias, hours = promote.alias, promote.approval_hours
    until = datetime.now(UTC) + timedelta(hours=hours)
    log.info(
        "approval: %s waits for a person until %s UTC: press Resume at %s, or `gptpipe approve %s`; it is at %s",
        registered.uri,
        f"{until:%Y-%m-%d %H:%M}",
        flow_run.ui_url or "its flow run's page",
        registered.version,
        registered.url,
    )
    text = f"**May [{registered.name} version {registered.version}]({registered.url}) become {alias}?**\n\n"
    text += f"{registered.decision.reason}\n\n{registered.decision.table}"
    form = Approval.with_initial_data(description=text)
    ended, context = Event(), copy_context()
    watch = (_resume_when_settled, promote, registered, UUID(str(flow_run.id)), ended)
    Thread(target=context.run, args=watch, name="approval", daemon=True).start()
    try:
        # a key of its own: after a crash the person is asked again
        return pause_flow_run(
            wait_for_input=form,
            timeout=max(1, int(timedelta(hours=hours).total_seconds())),
            poll_interval=_ASK_SECONDS,
            key=uuid4().hex,
        )
    except FlowPauseTimeout:
        log.warning("approval: nobody answered within %g hours: the %s stays", hours, alias)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(str(flow_run.id)), Running(), force=True)
        return None
    finally:
        ended.set()


def _resume_when_settled(promote: PromoteConfig, registered: Registered, run: UUID, ended: Event) -> None:
    """End the pause once the version waits no more."""
    with get_client(sync_client=True) as client:
        while not ended.wait(_ASK_SECONDS):
            with suppress(UserError, HTTPError):
                if not settled(promote, registered).waits:
                    client.resume_flow_run(run, run_input={"agree": False})
