"""The `gptpipe` command: a file for each group of its commands.

May import: everything else.
"""

from gptpipe.cli.entry import main

__all__ = ["main"]
