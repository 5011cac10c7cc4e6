"""The tests. Every process that runs some imports all that is tested: quickly."""

from gptpipe.startup import import_quickly

import_quickly()
