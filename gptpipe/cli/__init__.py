"""The `gptpipe` command: a file for each group of its commands.

May import: everything else.
"""

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """The console script: everything is imported in here, so that Ctrl-C is heard from the beginning."""
    try:
        from gptpipe.cli.entry import main as begin
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        sys.exit(75)  # as EXIT_RESUMABLE of gptpipe.errors, which may not be imported yet
    begin()
