"""`python -m gptpipe.node INVITATION`: one node of a training on several machines, as a JobSet's pods run it."""

from __future__ import annotations

import logging
import sys

from pydantic import ValidationError

from gptpipe.config.settings import make_home, prepare_environment, settings
from gptpipe.dataset.cache import TokenCache
from gptpipe.errors import UserError
from gptpipe.launch.channel import Invitation
from gptpipe.launch.node import LinkLost, join
from gptpipe.launch.torchrun import Cancelled
from gptpipe.progress import show_on_console

log = logging.getLogger(__name__)


def main(invitation: str) -> int:
    """Run a node that nothing but the parent starts, stops and follows; returns the exit code."""
    prepare_environment()
    here = settings()
    show_on_console(here.log_level)
    try:
        make_home(here.home_path)
        join(
            Invitation.model_validate_json(invitation),
            is_cancelled=lambda: False,
            address=here.node_address,
            cache=TokenCache(limit=here.cache_bytes),
        )
    except Cancelled as stopped:
        log.info("ended: %s", stopped)
    except (LinkLost, UserError, ValidationError) as error:
        print(f"gptpipe.node: {error}", file=sys.stderr)
        return 1 if isinstance(error, LinkLost) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
