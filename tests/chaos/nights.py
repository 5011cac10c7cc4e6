"""So many nights one after the other, in one process: a text that grows by a file, a retraining, `clean` now and then.

Usage: python -m tests.chaos.nights NIGHTS EVERY    (in a folder with the corpus, on the servers of the environment)
"""

from __future__ import annotations

import sys
from pathlib import Path

from typer.testing import CliRunner

from gptpipe.cli.app import app
from gptpipe.config.settings import prepare_environment
from tests.chaos.alone import RUN

DAYS = "0.002"  # three minutes


def call(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    if done.exit_code:
        sys.exit(f"gptpipe {words[0]}: {done.output}\n{done.exception!r}")
    return done.output


def main() -> None:
    count, every = map(int, sys.argv[1:])  # nights, and those between two times of `clean`: as many versions stay
    prepare_environment()
    for night in range(1, count + 1):
        Path("corpus", f"night-{night:03}.py").write_text(f"def night_{night}(x):\n    return x\n" * 20)
        call(*RUN)
        if night % every == 0 or night == count:
            call("clean", "--apply", "--older-than", DAYS, "--keep-versions", str(every))
            print(f"night {night} has ended", flush=True)


if __name__ == "__main__":
    main()
