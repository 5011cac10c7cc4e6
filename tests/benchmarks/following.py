"""What Prefect and MLflow cost a training: the same one bare, followed into MLflow, and as a Prefect flow.

Usage: python tests/benchmarks/following.py [--steps 400] [--rounds 1] [--precision bfloat16]

4 layers x 256, 8 x 256 tokens per step. Both servers are started first and run beside all three variants. Printed are
the medians over rounds of the seconds of the whole call, imports and start of the ranks included, and of the tokens/s
that training itself had, with the ratios to the bare one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

VARIANTS = ("bare", "mlflow", "flow")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 400), ("rounds", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--variant", choices=VARIANTS)
    parser.add_argument("--data")
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(options)))
        return
    from gptpipe.config import DataConfig
    from gptpipe.corpus.build import tokenize

    found: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, servers(Path(folder)) as environment:
        data = tokenize(DataConfig(), f"{folder}/data").dataset
        for turn in range(options.rounds):
            for variant, results in found.items():
                out = f"{folder}/{turn}-{variant}"
                command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant, "--data", data, "--out", out]
                began = time.perf_counter()
                done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
                results.append({"seconds": time.perf_counter() - began, **json.loads(done.splitlines()[-1])})
                print(f"{variant}: {results[-1]}", flush=True)
    middle = {
        name: {key: statistics.median(one[key] for one in all_) for key in all_[0]} for name, all_ in found.items()
    }
    for variant, numbers in middle.items():
        ratios = {key: numbers[key] / middle["bare"][key] for key in numbers}
        print(
            f"{variant:7} {numbers['seconds']:6.1f} s {ratios['seconds']:6.3f} x   "
            f"{numbers['tokens_per_second']:8,.0f} tokens/s {ratios['tokens_per_second']:6.3f} x"
        )


def measure(options: argparse.Namespace) -> dict[str, float]:
    from gptpipe.config import PipelineConfig
    from gptpipe.config.settings import prepare_environment

    prepare_environment()  # MLflow's client takes the keys of an object store from it
    config = PipelineConfig.model_validate(
        {
            "model": {"n_layer": 4, "n_embd": 256, "n_head": 4, "context_length": 256},
            "train": {"steps": options.steps, "batch_size": 8, "precision": options.precision},
        }
    )
    result: Any
    if options.variant == "bare":
        from gptpipe.launch.training import train

        result = train(config.model, config.train, data=options.data, out=options.out).as_dict()
    elif options.variant == "mlflow":
        from gptpipe.config.settings import settings
        from gptpipe.tracking.client import Tracking
        from gptpipe.tracking.training import train_and_track

        made, link = train_and_track(config, Tracking.of(settings()), data=options.data, out=options.out)
        assert link is not None, "MLflow did not answer"
        result = made.as_dict()
    else:
        from flows import begin

        begin()
        from flows.train import TrainParameters
        from flows.train import train as train_flow

        made, link = train_flow(TrainParameters(data=options.data, config=config, storage=options.out))
        assert link is not None, "MLflow did not answer"
        result = made.as_dict()
    return {"tokens_per_second": result["tokens_per_second"]}


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, str]]:
    """A Prefect and an MLflow server, and the environment in which they are found."""
    from gptpipe.config.settings import DEFAULTS
    from gptpipe.services.ports import free_ports

    prefect, mlflow = free_ports(2)
    environment = {
        **os.environ,
        **DEFAULTS,
        "GPTPIPE_HOME": str(folder / "home"),
        "GPTPIPE_MLFLOW_URI": f"http://127.0.0.1:{mlflow}",
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{prefect}/api",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH", "")])),
    }
    commands = [
        ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(prefect)],
        ["mlflow", "server", "--host", "127.0.0.1", "--port", str(mlflow), "--workers", "1",
         "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
         "--artifacts-destination", str(folder / "artifacts")],
    ]  # fmt: skip
    with (folder / "servers.log").open("wb") as log:
        started = [
            subprocess.Popen([sys.executable, "-m", *command], env=environment, cwd=folder, stdout=log, stderr=log)
            for command in commands
        ]
    try:
        for url in (f"http://127.0.0.1:{prefect}/api/health", f"http://127.0.0.1:{mlflow}/health"):
            wait_for(url, folder / "servers.log")
        yield environment
    finally:
        for process in started:
            process.terminate()
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def wait_for(url: str, log: Path) -> None:
    from gptpipe.services.ports import answers

    until = time.monotonic() + 120
    while answers(url):
        if time.monotonic() > until:
            raise SystemExit(f"{url} does not answer: {log.read_text()[-2000:]}")
        time.sleep(0.5)


if __name__ == "__main__":
    main()
