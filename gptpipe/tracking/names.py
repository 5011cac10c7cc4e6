"""What a registered version is called: champion, another alias of the model, or models:/…."""

from __future__ import annotations

from typing import Any

from gptpipe.config import PipelineConfig
from gptpipe.tracking.client import Tracking
from gptpipe.tracking.moves import version_called
from gptpipe.tracking.registry import MODELS, find_version


def named_version(name: str, tracking: Tracking, config: PipelineConfig | None = None) -> Any | None:
    """The registered version of this name; None where it is no alias of the model.

    Args:
        name: champion, an alias such as previous or challenger, or models:/….
        config: whose model's aliases are meant; by default the usual one's.

    Raises:
        UserError: there is no champion, or nothing is called models:/….
    """
    if name == "champion" or name.startswith(MODELS):
        return find_version(name, tracking, config)
    with tracking.reached() as client:
        return version_called(client, (config or PipelineConfig()).promote.model_name, name)
