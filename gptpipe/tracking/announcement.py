"""Says once what became of a registered model: to whoever listens for events, and to a webhook."""

from __future__ import annotations

import json
import logging
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from gptpipe.tracking.moves import ANNOUNCED_TAG
from gptpipe.tracking.promote import ALREADY
from gptpipe.tracking.registry import Registered, decision_of
from gptpipe.version import __version__

log = logging.getLogger(__name__)

PROMOTED, KEPT, WAITING = "gptpipe.model.promoted", "gptpipe.model.kept", "gptpipe.model.waits"
_TRIES, _SECONDS = 3, 10.0


def announce(
    registered: Registered, alias: str, emit: Callable[[str, dict[str, Any]], Any], webhook: str | None = None
) -> bool:
    """Tell whether the version became champion, or waits for a person, unless that was told before. What is not
    heard ends no pipeline.

    A process that is killed in between tells it again: a listener may hear the same twice, but never nothing.

    Args:
        alias: that moved or stayed.
        emit: called with the event's name and its payload.
        webhook: address that gets the same as a POST with JSON, the event's name in `event` and a sentence in `text`.

    Returns:
        Whether it was told now.
    """
    event = PROMOTED if registered.decision.promote else WAITING if registered.waits else KEPT
    with registered.tracking.reached() as client:
        version = client.get_model_version(registered.name, registered.version)
        if version.tags.get(ANNOUNCED_TAG) == event:
            return False
        decision = decision_of(version) if registered.decision == ALREADY else registered.decision
        verdict = f"is now {alias}" if registered.decision.promote else f"is not {alias}"
        payload = {
            "text": f"{registered.name} version {registered.version} {verdict}: {decision.reason}",
            "model": registered.name,
            "version": registered.version,
            "alias": alias,
            "uri": registered.uri,
            "url": registered.url,
            "reason": decision.reason,
            "checks": [asdict(check) for check in decision.checks],
        }
        emit(event, payload)
        if webhook:
            post(webhook, {"event": event, **payload})
        client.set_model_version_tag(registered.name, registered.version, ANNOUNCED_TAG, event)
    return True


def post(url: str, payload: dict[str, Any]) -> None:
    """A few tries, and then a warning. The path of such an address is often its password, and is not shown."""
    headers = {"Content-Type": "application/json", "User-Agent": f"gptpipe/{__version__}"}
    request = urllib.request.Request(url, json.dumps(payload).encode(), headers)
    for left in reversed(range(_TRIES)):
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS):
                return
        except (OSError, ValueError, HTTPException) as error:
            if not left:
                reason = error if isinstance(error, OSError) else type(error).__name__  # others hold the address
                log.warning("the webhook at %s was not reached: %s", urlsplit(url).hostname, reason)
            else:
                time.sleep(1.0)
