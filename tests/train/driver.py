"""A small training as a process of its own, so that a test can kill it: `python driver.py SETTINGS.json`."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from gptpipe.config import ModelConfig, TrainConfig
from gptpipe.errors import Preempted, UserError
from gptpipe.launch.torchrun import Cancelled
from gptpipe.launch.training import TrainingFailed, train

sys.path.insert(0, str(Path(__file__).parent))
from neighbours import Neighbours


def main(path: str) -> int:
    """Exit codes: 0 finished, 75 preempted, 130 cancelled, 2 user error, 1 failed; the result on stdout."""
    given = json.loads(Path(path).read_text())
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        result = train(
            ModelConfig(**given["model"]),
            TrainConfig(**given["train"]),
            data=given["data"],
            out=given["out"],
            hosts=Neighbours(given["absent"]),
        )
    except Preempted as stopped:
        print(stopped)
        return 75
    except Cancelled as stopped:
        print(stopped)
        return 130
    except UserError as error:
        print(error)
        return 2
    except TrainingFailed as error:
        print(error, error.details)
        return 1
    print(json.dumps(result.as_dict()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
