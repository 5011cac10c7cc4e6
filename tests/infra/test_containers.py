"""The services of infra/compose.yaml as processes of this machine: their commands and environments, without Docker."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from gptpipe.services.ports import free_ports
from tests.fixtures.place import GPTPIPE, folder_for_all, stack_in, wait_until

pytestmark = [pytest.mark.stack, pytest.mark.slow]
COMPOSE = Path(__file__).parents[2] / "infra" / "compose.yaml"
PUBLISHED = {"prefect": ("GPTPIPE_PREFECT_PORT", "4200"), "mlflow": ("GPTPIPE_MLFLOW_PORT", "5000")}
PUBLISHED |= {"seaweedfs": ("GPTPIPE_S3_PORT", "8333")}


def interpolated(value: str, given: dict[str, str]) -> str:
    """`${NAME:-default}` and `${NAME:?message}` as Docker resolves them."""

    def resolve(found: re.Match[str]) -> str:
        name, how, rest = found.groups()
        if given.get(name):
            return given[name]
        assert how == ":-", f"{name}: {rest}"
        return rest

    return re.sub(r"\$\{(\w+)(:[?-])([^}]*)\}", resolve, value)


class Containers:
    """Runs what containers would run.

    Args:
        database: PostgreSQL's port, whose databases the names in the URLs are.
    """

    def __init__(self, folder: Path, given: dict[str, str], database: int) -> None:
        self.folder, self.given, self.database = folder, given, database
        self.services = yaml.safe_load(COMPOSE.read_text())["services"]
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def translated(self, name: str, text: str) -> str:
        """What a container is told, for a process that shares this machine's network and disk."""
        text = interpolated(str(text), self.given)
        text = text.replace("@postgres:5432/", f"@127.0.0.1:{self.database}/composed_")
        for service, (variable, inner) in PUBLISHED.items():
            text = text.replace(f"//{service}:{inner}", f"//127.0.0.1:{self.given[variable]}")
            if service == name:
                text = text.replace(inner, self.given[variable])
        return str(self.folder / name) if text == "/data" else text

    def command(self, name: str) -> list[str]:
        service = self.services[name]
        words = [*service.get("entrypoint", ["gptpipe"]), *service["command"]]
        program = sys.executable if words[0] == "python" else str(Path(GPTPIPE).with_name(words[0]))
        return [program, *(self.translated(name, word) for word in words[1:])]

    def environment(self, name: str, **more: str) -> dict[str, str]:
        found = {
            key: value for key, value in os.environ.items() if not key.startswith(("GPTPIPE_", "PREFECT_", "AWS_"))
        }
        told = {key: self.translated(name, value) for key, value in self.services[name]["environment"].items()}
        return found | {"GPTPIPE_HOME": str(self.folder / name), "PATH": self._path()} | told | more

    def start(self, name: str) -> None:
        (self.folder / name).mkdir(exist_ok=True)
        with (self.folder / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                self.command(name),
                cwd=self.folder / name,
                env=self.environment(name),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if "healthcheck" in self.services[name]:
            _, program, *words = self.services[name]["healthcheck"]["test"]
            assert program == "python"
            check = [sys.executable, *(self.translated(name, word) for word in words)]
            wait_until(
                lambda: self.running[name].poll() is not None or not subprocess.call(check, stderr=subprocess.DEVNULL),
                60,
                f"the health of {name}",
            )
            assert self.running[name].poll() is None, (self.folder / f"{name}.log").read_text()

    def call(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """gptpipe as in the worker's container."""
        return subprocess.run(
            [GPTPIPE, *words],
            cwd=self.folder,
            env=self.environment("worker", **more),
            capture_output=True,
            text=True,
        )

    def stop(self) -> None:
        for process in reversed(self.running.values()):
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for each in family:
                each.kill()
            process.wait()

    def _path(self) -> str:
        return os.pathsep.join([str(Path(GPTPIPE).parent), os.environ["PATH"]])


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    import psycopg

    folder = tmp_path_factory.mktemp("containers")
    with folder_for_all("database") as database, stack_in(database) as stack:
        password = json.loads((stack.folder / ".gptpipe" / "stack" / "secrets.json").read_text())["postgres"]
        ports = dict(zip((variable for variable, _ in PUBLISHED.values()), map(str, free_ports(3)), strict=True))
        given = {"POSTGRES_PASSWORD": password, "PREFECT_API_AUTH_STRING": "somebody:something"}
        given |= {"GPTPIPE_S3_SECRET_KEY": secrets.token_hex(8), **ports}
        place = f"postgresql://gptpipe:{password}@127.0.0.1:{stack.ports['POSTGRES']}/postgres"
        statements = yaml.safe_load(COMPOSE.read_text())["configs"]["databases"]["content"].split(";")
        with psycopg.connect(place, autocommit=True) as connection:
            for statement in filter(str.strip, statements):
                connection.execute(statement.replace("database ", "database composed_").encode())
        made = Containers(folder, given, stack.ports["POSTGRES"])
        try:
            for name in ("seaweedfs", "prefect", "mlflow"):
                made.start(name)
            deploy = subprocess.run(
                made.command("deploy"), env=made.environment("deploy"), cwd=folder, capture_output=True, text=True
            )
            assert deploy.returncode == 0, deploy.stderr
            made.start("worker")
            yield made
        finally:
            made.stop()


def test_a_training_is_asked_for_and_made(containers: Containers) -> None:
    model = {"n_layer": 1, "n_embd": 16, "n_head": 2, "context_length": 16}
    train = {"steps": 4, "batch_size": 4, "warmup_steps": 2, "checkpoint_every": 2, "precision": "float32"}
    text = containers.folder / "text"
    text.mkdir()
    for number in range(12):
        (text / f"{number}.py").write_text(f"def f{number}(a, b):\n    return a + b\n" * 60)
    wanted = {"data": {"corpus": [{"url": str(text)}], "validation": 0.5}, "model": model, "train": train}
    wanted |= {"evaluate": {"max_tokens": 64}, "sample": {"max_new_tokens": 2}}
    press = [sys.executable, "-m", "prefect", "deployment", "run", "retrain/on-demand", "--watch", "--params"]
    asked = subprocess.run(
        [*press, json.dumps({"parameters": wanted})],
        env=containers.environment("worker"),
        cwd=containers.folder,
        capture_output=True,
        text=True,
    )
    assert asked.returncode == 0, asked.stdout + (containers.folder / "worker.log").read_text()
    found = containers.call("doctor", "--json")
    checks: dict[str, Any] = {each["name"]: each for each in json.loads(found.stdout)["checks"]}
    assert checks["prefect"]["ok"], checks
    assert checks["tracking"]["ok"], checks
    assert checks["storage"]["ok"], checks


def test_whoever_does_not_know_the_word_is_not_let_in(containers: Containers) -> None:
    for words in (("deploy",), ("worker", "--cpu", "--pool", "gptpipe")):
        done = containers.call(*words, PREFECT_API_AUTH_STRING="somebody:else")
        assert done.returncode == 2
        (line,) = done.stderr.strip().splitlines()
        assert "PREFECT_API_AUTH_STRING: the Prefect server does not let this machine in (401)" in line
    checks = json.loads(containers.call("doctor", "--json", PREFECT_API_AUTH_STRING="somebody:else").stdout)["checks"]
    (check,) = [each for each in checks if each["name"] == "prefect"]
    assert check["ok"] is False
    assert "does not let this machine in" in check["detail"]
    checks = json.loads(containers.call("doctor", "--json", GPTPIPE_MLFLOW_AUTH="somebody:else").stdout)["checks"]
    (check,) = [each for each in checks if each["name"] == "tracking"]
    assert check["detail"].startswith("GPTPIPE_MLFLOW_AUTH: the MLflow server does not let this machine in (401)")


def test_stopped_it_ends_by_itself_within_its_grace(containers: Containers) -> None:
    """What Docker sends to a container is a SIGTERM; the worker ends by itself."""
    grace = containers.services["worker"]["stop_grace_period"]
    worker = containers.running["worker"]
    worker.terminate()
    began = time.monotonic()
    assert worker.wait(float(grace.removesuffix("s"))) == 0
    assert time.monotonic() - began < 20
    containers.start("worker")
