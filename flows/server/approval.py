"""A flow run that waits until a person has filled in a form: may this model become champion?"""

from __future__ import annotations

import logging
from datetime import timedelta
from uuid import UUID, uuid4

from prefect import pause_flow_run
from prefect.client.orchestration import get_client
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Running
from pydantic import Field

from gptpipe.tracking.registry import Registered

log = logging.getLogger("gptpipe.flows")
_ASK_SECONDS = 5  # between two looks whether there is an answer


class Approval(RunInput):
    """The form."""

    agree: bool = Field(False, title="Make it the champion", description="Off: the champion stays")
    note: str = Field("", title="Note", description="Kept with the decision", max_length=500)


def ask(registered: Registered, alias: str, hours: float) -> Approval | None:
    """Pause this flow run until a person has answered; None where nobody did in time.

    Args:
        alias: that would move. hours: how long to wait.
    """
    log.info("approval: %s waits for a person: press Resume; %s", registered.uri, registered.url)
    text = f"**May [{registered.name} version {registered.version}]({registered.url}) become {alias}?**\n\n"
    text += f"{registered.decision.reason}\n\n{registered.decision.table}"
    form = Approval.with_initial_data(description=text)
    try:
        # a key of its own: after a crash the person is asked anew
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
