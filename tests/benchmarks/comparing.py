"""Many runs in one experiment: how long MLflow's pages take to open, and what logging costs a training beside them.

Usage: python -m tests.benchmarks.comparing [--runs 200] [--keys 25] [--points 2000] [--rounds 2] [--steps 150]
                                          [--pictures FOLDER]

The whole stack is started, PostgreSQL below MLflow. One run is logged as a training logs it; its points are copied to
the others by the database, each shifted a little. Chromium opens the table of runs, the charts of the newest ten, and
the comparison of ten that are ticked; the time of each is from the address to its last chart or row. Then the same
training is done bare and followed into that experiment, in turn (`following.py`).
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from gptpipe.config import PipelineConfig, flatten
from gptpipe.config.load import load_config
from tests.fixtures.browser import Browser, browser
from tests.fixtures.place import Place, folder_for_all, stack_in

os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
FOLLOWING = Path(__file__).with_name("following.py")
TICKED = 10
# a chart is there when its lines are drawn
CHARTS = """() => [...document.querySelectorAll('.js-plotly-plot')]
  .filter(chart => chart.querySelector('.trace, .lines, .point, .parcoords')).length"""
ROWS = "() => document.querySelectorAll('[role=row] a[href*=\"/runs/\"]').length"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("runs", 200), ("keys", 25), ("points", 2000), ("rounds", 2), ("steps", 150)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--pictures", type=Path, default=None)
    options = parser.parse_args()
    with folder_for_all("comparing") as folder, stack_in(folder) as place:
        client = MlflowClient(f"http://127.0.0.1:{place.ports['MLFLOW']}")
        experiment = client.create_experiment("gptpipe")
        runs = fill(client, experiment, place, options)
        look(place, experiment, runs, options)
        follow(place, options)


def say(text: str) -> None:
    print(text, flush=True)


def fill(client: MlflowClient, experiment: str, place: Place, options: argparse.Namespace) -> list[str]:
    """The runs' ids."""
    config = load_config()
    first = begin(client, experiment, config, 0)
    points = [
        Metric(f"{'train' if key % 2 else 'validation'}/number_{key}", 10 / (1 + step) ** 0.2 + key, step, step)
        for step in range(options.points)
        for key in range(options.keys)
    ]
    began = time.perf_counter()
    for start in range(0, len(points), 1000):
        client.log_batch(first, metrics=points[start : start + 1000])
    seconds = time.perf_counter() - began
    print(
        f"logging {len(points):,} points: {seconds:.1f} s, {1e3 * seconds / options.points:.2f} ms per step", flush=True
    )
    runs = [first, *(begin(client, experiment, config, number) for number in range(1, options.runs))]
    began = time.perf_counter()
    with psycopg.connect(database_of(place), autocommit=True) as database:
        copy(database, runs)
        (rows,) = database.execute("SELECT count(*) FROM metrics").fetchone() or (0,)
    say(f"{len(runs)} runs with {rows:,} points in the database, copied in {time.perf_counter() - began:.0f} s")
    return runs


def database_of(place: Place) -> str:
    """The address of MLflow's tables."""
    return place.stack_environment()["GPTPIPE_SWEEPS_URI"].replace("+psycopg", "").replace("/sweeps", "/mlflow")


def copy(database: psycopg.Connection[Any], runs: list[str]) -> None:
    """Give all runs the points of the first; the tables' indices are made anew when all rows are there."""
    asked = "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'metrics'::regclass"
    constraints = database.execute(asked).fetchall()
    for name, _ in constraints:
        database.execute(f'ALTER TABLE metrics DROP CONSTRAINT "{name}"')  # type: ignore[arg-type]
    indices = database.execute("SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'metrics'").fetchall()
    for name, _ in indices:
        database.execute(f'DROP INDEX "{name}"')  # type: ignore[arg-type]
    for table in ("metrics", "latest_metrics"):
        database.execute(
            f"INSERT INTO {table} (key, value, timestamp, run_uuid, step, is_nan) "  # type: ignore[arg-type]
            f"SELECT key, value + 0.01 * number * random(), timestamp, run, step, is_nan FROM {table}, "
            "unnest(%s::text[]) WITH ORDINALITY AS others(run, number) WHERE run_uuid = %s",
            (runs[1:], runs[0]),
        )
    database.execute("SET maintenance_work_mem = '1GB'")
    for name, definition in constraints:
        database.execute(f'ALTER TABLE metrics ADD CONSTRAINT "{name}" {definition}')
    for _, definition in indices:
        database.execute(definition)
    database.execute("ANALYZE")


def begin(client: MlflowClient, experiment: str, config: PipelineConfig, number: int) -> str:
    values = {**flatten(config), "train.learning_rate": 1e-4 * (1 + number % 7), "train.seed": number}
    tags = {"preset": "nano", "dataset": "stdlib 01234567", "status": "finished", "trigger": "benchmark"}
    run = client.create_run(experiment, run_name=f"stdlib · nano · rate {1 + number % 7} · {number}", tags=tags)
    client.log_batch(
        run.info.run_id,
        params=[Param(key, str(value)[:6000]) for key, value in values.items()],
        tags=[RunTag("mlflow.note.content", f"Run {number}.")],
    )
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def look(place: Place, experiment: str, runs: list[str], options: argparse.Namespace) -> None:
    home = f"http://127.0.0.1:{place.ports['MLFLOW']}/#"
    ticked = json.dumps(runs[:: max(1, len(runs) // TICKED)][:TICKED])
    pages: dict[str, tuple[str, Callable[[Browser], bool]]] = {
        "table of runs": (f"{home}/experiments/{experiment}/runs", lambda page: page.run(ROWS) >= 20),
        "charts of runs": (
            f"{home}/experiments/{experiment}/runs?compareRunsMode=CHART",
            lambda page: page.run(CHARTS) >= 2,
        ),
        f"comparison of {TICKED}": (
            f"{home}/compare-runs?runs={ticked}&experiments=[%22{experiment}%22]".replace('"', "%22"),
            lambda page: page.run(CHARTS) >= 1,
        ),
    }
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile) / "profile") as page:
        for name, (url, is_there) in pages.items():
            took = []
            for turn in range(3):
                page.open("about:blank")
                began = time.perf_counter()
                page.open(url)
                while not is_there(page):
                    if time.perf_counter() - began > 60:
                        raise SystemExit(f"{name} does not open:\n{page.text()[:3000]}")
                    time.sleep(0.05)
                took.append(time.perf_counter() - began)
                if options.pictures and not turn:
                    time.sleep(2)
                    page.picture(options.pictures / f"{name.replace(' ', '-')}.png")
            say(f"{name}: {', '.join(f'{each:.2f}' for each in took)} s, the first with nothing cached")


def follow(place: Place, options: argparse.Namespace) -> None:
    """Trainings bare and followed, in turn: tokens/s."""
    environment = place.environment(**place.stack_environment())
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))
    speeds: dict[str, list[float]] = {"bare": [], "mlflow": []}
    with tempfile.TemporaryDirectory() as folder:
        from gptpipe.config import DataConfig
        from gptpipe.corpus.build import tokenize

        data = tokenize(DataConfig(), f"{folder}/data").dataset
        for turn in range(options.rounds):
            for variant, found in speeds.items():
                words = ["--variant", variant, "--data", data, "--out", f"{folder}/{turn}-{variant}"]
                words += ["--steps", str(options.steps)]
                done = subprocess.run(
                    [sys.executable, str(FOLLOWING), *words],
                    check=True,
                    env=environment,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
                found.append(answer["tokens_per_second"])
                say(f"{variant}: {found[-1]:,.0f} tokens/s")
    bare, followed = (statistics.median(speeds[variant]) for variant in speeds)
    print(f"followed into MLflow: {followed / bare:.4f} of the bare speed (asked 0.99)")


if __name__ == "__main__":
    main()
