"""train-node: this machine's part of a training on several, started by its parent."""

from __future__ import annotations

import logging
from typing import Any

from prefect import flow
from prefect.states import Cancelled as CancelledState

from flows.server import endings, report
from gptpipe.config.settings import settings
from gptpipe.dataset.cache import TokenCache
from gptpipe.launch import node
from gptpipe.launch.channel import Invitation
from gptpipe.launch.torchrun import Cancelled

log = logging.getLogger("gptpipe.flows")


@flow(name="train-node", on_completion=[endings.last_word], on_failure=[endings.last_word])
def train_node(invitation: Invitation) -> Any:
    """Join the training that sent the invitation, run its ranks here, and end with it. Nobody else starts this."""
    try:
        outcome = node.join(
            invitation,
            is_cancelled=report.is_cancelling,
            address=settings().node_address,
            cache=TokenCache(limit=settings().cache_bytes),
        )
    except Cancelled as stopped:
        return CancelledState(message=str(stopped))
    log.info("train-node: %s%s", outcome.status, f", {outcome.reason}" if outcome.reason else "")
    return outcome.status
