"""Trainings whose nodes are the pods of a JobSet, in a cluster of this file: an API server that runs pods as processes.

No real cluster can run here. What the API takes and tells is Kubernetes' and the JobSet controller's documented form,
asked for by the real client; the pods' command, arguments and environment are run as the template has them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from flows.machines.jobsets import JobSetHosts, filled, read_template
from gptpipe.config import ModelConfig, TrainConfig
from gptpipe.errors import UserError
from gptpipe.launch.channel import Invitation
from gptpipe.launch.torchrun import Cancelled, Watchers
from gptpipe.launch.training import TrainResult, train
from tests.fixtures.neighbours import PORTS
from tests.fixtures.place import wait_until
from tests.fixtures.trainings import MODEL, TRAIN, dataset

__all__ = ["dataset"]
TEMPLATE = Path(__file__).parents[2] / "infra" / "kubernetes" / "jobsets" / "jobset.yaml"
JOBSETS = "/apis/jobset.x-k8s.io/v1alpha2/namespaces/gptpipe/jobsets"


class Cluster:
    """What of a cluster a training uses.

    Attributes:
        made: every JobSet that was created.
        pods: of the JobSets that are there, their processes.
        refuses: an HTTP status with which it answers to a new JobSet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[dict[str, Any]] = []
        self.pods: dict[str, list[subprocess.Popen[str]]] = {}
        self.refuses = 0
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert urlsplit(self.path).path == JOBSETS
                self._answer(cluster.create(body))

            def do_GET(self) -> None:
                self._answer(cluster.read(self.path))

            def do_DELETE(self) -> None:
                self._answer(cluster.delete(self.path.rsplit("/", 1)[1].split("?")[0]))

            def _answer(self, reply: tuple[int, dict[str, Any]]) -> None:
                content = json.dumps(reply[1]).encode()
                self.send_response(reply[0])
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def create(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.refuses:
            return self.refuses, {"kind": "Status", "code": self.refuses}
        JobsetV1alpha2JobSet.from_dict(body)  # what the controller's own types take
        name = body["metadata"]["name"]
        job = body["spec"]["replicatedJobs"][0]["template"]["spec"]
        (container,) = job["template"]["spec"]["containers"]
        pods: list[subprocess.Popen[str]] = []
        for number in range(job["parallelism"]):
            given = {each["name"]: each["value"] for each in container["env"] if "value" in each}
            # The image's PATH begins with its Python; the tests' own need not be on the caller's.
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
            home = {"GPTPIPE_HOME": str(self.folder / f"{name}-{number}"), "PATH": path}
            pods.append(
                subprocess.Popen(
                    [*container["command"], *container["args"]],
                    env={**os.environ, **given, **home},
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
            )
        self.pods[name] = pods
        self.made.append(body)  # the last: who waits for it finds its pods
        return 201, body

    def read(self, path: str) -> tuple[int, dict[str, Any]]:
        where = urlsplit(path)
        if where.path == "/api/v1/namespaces/gptpipe/pods":
            (name,) = parse_qs(where.query)["labelSelector"][0].split("=")[1:]
            return 200, {"kind": "PodList", "apiVersion": "v1", "items": list(map(self._pod, self.pods.get(name, [])))}
        name = where.path.rsplit("/", 1)[1]
        if name not in self.pods:
            return 404, {"kind": "Status", "code": 404}
        failed = any(pod.poll() for pod in self.pods[name])
        conditions = [{"type": "Failed", "status": "True", "message": "jobset failed"}] if failed else []
        return 200, {"metadata": {"name": name}, "status": {"conditions": conditions}}

    def delete(self, name: str) -> tuple[int, dict[str, Any]]:
        for pod in self.pods.pop(name, []):
            if pod.poll() is None:
                pod.send_signal(signal.SIGTERM)
            pod.communicate(timeout=30)
        return 200, {"kind": "Status", "status": "Success"}

    def _pod(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        code = process.poll()
        state: dict[str, Any] = {"running": {}}
        if code is not None:
            reason = {-9: "OOMKilled", 0: "Completed"}.get(code, "Error")
            said = process.stderr.read()[-2000:] if process.stderr and code > 0 else ""
            state = {"terminated": {"exitCode": abs(code), "reason": reason, "message": said}}
        status = {"name": "node", "ready": False, "restartCount": 0, "image": "", "imageID": "", "state": state}
        return {
            "metadata": {"name": f"pod-{process.pid}"},
            "spec": {"nodeName": "host-1", "containers": []},
            "status": {"containerStatuses": [status]},
        }


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_api: str) -> Iterator[Cluster]:
    """A cluster that the kubeconfig names, and a Prefect server that keeps the slots."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    made = Cluster(tmp_path)
    server = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{made.server.server_port}"}}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [server],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        yield made
    for name in list(made.pods):
        made.delete(name)
    made.server.shutdown()


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """The shipped one, with this Python's storage instead of the cluster's."""
    body = yaml.safe_load(TEMPLATE.read_text())
    container = body["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["python", "-m", "gptpipe.node"]
    container["env"] = []
    (tmp_path / "jobset.yaml").write_text(yaml.safe_dump(body))
    return tmp_path / "jobset.yaml"


def trained(data: str, out: Path, hosts: JobSetHosts | None, *, poll: Any = None, **given: Any) -> TrainResult:
    config = TrainConfig(**{**TRAIN, **given})
    watchers = Watchers(on_metrics=poll or (lambda _: None))
    return train(ModelConfig(**MODEL), config, data=data, out=str(out), hosts=hosts, watchers=watchers)


def files(checkpoint: str) -> list[bytes]:
    return [(Path(checkpoint) / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer")]


@pytest.mark.slow
def test_two_pods_come_to_the_bits_of_two_ranks_and_nothing_is_left(
    cluster: Cluster, template: Path, dataset: str, tmp_path: Path
) -> None:
    alone = trained(dataset, tmp_path / "alone", None, nproc=2)
    together = trained(dataset, tmp_path / "together", JobSetHosts(template, 4, "127.0.0.1", PORTS), nodes=2)
    assert files(together.checkpoint) == files(alone.checkpoint)
    (made,) = cluster.made
    assert made["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"] == 2
    assert cluster.pods == {}


@pytest.mark.slow
def test_a_pod_that_runs_out_of_memory_is_named_and_the_next_attempt_goes_on(
    cluster: Cluster, template: Path, dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed: list[int] = []

    def kill_one(lines: list[dict[str, Any]]) -> None:
        if lines and lines[-1]["step"] >= 7 and not killed:
            (pods,) = cluster.pods.values()
            killed.append(pods[0].pid)
            for process in [*psutil.Process(pods[0].pid).children(recursive=True), psutil.Process(pods[0].pid)]:
                process.kill()

    alone = trained(dataset, tmp_path / "alone", None, nproc=2, steps=60)
    hosts = JobSetHosts(template, 2, "127.0.0.1", PORTS)
    with caplog.at_level("INFO"):
        together = trained(dataset, tmp_path / "together", hosts, poll=kill_one, nodes=2, steps=60)
    assert f"pod pod-{killed[0]} on host-1 ended: out of memory; once more from step" in caplog.text
    assert files(together.checkpoint) == files(alone.checkpoint)
    assert len(cluster.made) == 2
    assert cluster.made[0]["metadata"]["name"] != cluster.made[1]["metadata"]["name"]
    assert cluster.pods == {}


@pytest.mark.slow
def test_a_jobset_that_somebody_deletes_is_cancelled_before_it_runs(
    cluster: Cluster, template: Path, dataset: str, tmp_path: Path
) -> None:
    body = yaml.safe_load(template.read_text())
    pod = body["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    pod["containers"][0]["command"] = ["sh", "-c", "exec sleep 300", "--"]  # a pod that never joins
    template.write_text(yaml.safe_dump(body))

    def delete() -> None:
        wait_until(lambda: cluster.made, 60, "a JobSet")
        cluster.delete(cluster.made[0]["metadata"]["name"])

    thread = threading.Thread(target=delete)
    thread.start()
    with pytest.raises(Cancelled, match="was deleted"):
        trained(dataset, tmp_path / "deleted", JobSetHosts(template, 2, "127.0.0.1", PORTS), nodes=2)
    thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "said"), [(403, "service account may not make one"), (404, "install the controller")]
)
def test_a_cluster_that_takes_no_jobset_says_why(
    cluster: Cluster, template: Path, dataset: str, tmp_path: Path, status: int, said: str
) -> None:
    cluster.refuses = status
    with pytest.raises(UserError, match=said):
        trained(dataset, tmp_path / "refused", JobSetHosts(template, 2, "127.0.0.1", PORTS), nodes=2)


def test_what_a_training_fills_in_leaves_the_rest_of_the_template(template: Path) -> None:
    invitation = Invitation(host="10.0.0.1", port=29400, attempt=1, token="t", training="s3://b/trainings/0")
    before = read_template(TEMPLATE)
    body = filled(before, "gptpipe-0-1", invitation, 3)
    assert before == read_template(TEMPLATE)
    job = body["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert (job["parallelism"], job["completions"]) == (3, 3)
    assert Invitation.model_validate_json(container["args"][0]) == invitation
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


@pytest.mark.parametrize("content", [None, "kind: Job\n", "a: [", "kind: JobSet\nspec: {replicatedJobs: []}\n"])
def test_what_is_no_template_is_refused_by_name(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "jobset.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"GPTPIPE_JOBSET=.*jobset\.yaml: not the template of a JobSet"):
        JobSetHosts(path, 1, "127.0.0.1", PORTS)


@pytest.mark.slow
def test_without_a_cluster_it_says_so(
    template: Path, dataset: str, tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    absent = str(tmp_path / "none")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", absent)
    with (
        temporary_settings({PREFECT_API_URL: prefect_api}),
        pytest.raises(UserError, match="GPTPIPE_JOBSET: no Kubernetes cluster"),
    ):
        trained(dataset, tmp_path / "nowhere", JobSetHosts(template, 2, "127.0.0.1", PORTS), nodes=2)
