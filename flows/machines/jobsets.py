"""The machines of a training on Kubernetes: a JobSet with a pod for each node, made for it and deleted after it.

A work pool of Prefect makes one pod for one run; a JobSet (jobset.sigs.k8s.io) starts all nodes together, and a queue
such as Kueue holds it back until there is room for all.
"""

from __future__ import annotations

import copy
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from flows.machines import slots
from gptpipe.errors import UserError
from gptpipe.launch.channel import Invitation
from gptpipe.launch.job import Outcome
from gptpipe.launch.torchrun import Cancelled

_GROUP, _VERSION, _PLURAL = "jobset.x-k8s.io", "v1alpha2", "jobsets"
_LABEL = "jobset.sigs.k8s.io/jobset-name"  # which the controller puts on every pod
_ASK_SECONDS = 2.0


class JobSetHosts:
    """`gptpipe.launch.gang.Hosts`, by the cluster that this process runs in, or that its kubeconfig names.

    Args:
        template: YAML of a JobSet; what a training fills in is described at `filled`.
        most: nodes that trainings may have at once.

    Raises:
        UserError: the template is not a JobSet's.
    """

    def __init__(self, template: Path, most: int, address: str, ports: range) -> None:
        self.address, self.ports = address, ports
        self._template, self._most = read_template(template), most
        self._namespace = str(self._template["metadata"].get("namespace", "default"))
        self._name, self._asked = "", 0.0

    def this_machine(self) -> AbstractContextManager[None]:
        return slots.machine(socket.gethostname())

    def nodes(self, most: int, least: int, poll: Callable[[], None]) -> AbstractContextManager[int]:
        return slots.nodes(most, least, poll, lambda: self._most, self.missing)

    def start(self, invitation: Invitation, nodes: int) -> None:
        _find_cluster()
        self._name = f"gptpipe-{invitation.training.rsplit('/', 1)[-1][:8]}-{invitation.token[:6]}"
        body = filled(self._template, self._name, invitation, nodes)
        try:
            client.CustomObjectsApi().create_namespaced_custom_object(_GROUP, _VERSION, self._namespace, _PLURAL, body)
        except ApiException as error:
            self._name = ""
            absent = "the cluster has no JobSets: install the controller from jobset.sigs.k8s.io"
            why = {403: "the worker's service account may not make one", 404: absent}.get(error.status, error.reason)
            raise UserError(
                f"no JobSet could be made: {why}",
                where=f"namespace {self._namespace}",
                hint="see infra/kubernetes, or leave GPTPIPE_JOBSET empty to use workers",
            ) from None
        except HTTPError as error:
            raise UserError(
                f"the cluster does not answer: {error}", where="KUBECONFIG", hint="see `kubectl cluster-info`"
            ) from None

    def problem(self) -> Outcome | None:
        if time.monotonic() - self._asked < _ASK_SECONDS:
            return None
        self._asked = time.monotonic()
        try:
            jobset: Any = client.CustomObjectsApi().get_namespaced_custom_object(
                _GROUP, _VERSION, self._namespace, _PLURAL, self._name
            )
        except ApiException as error:
            if error.status == 404:
                raise Cancelled(f"JobSet {self._name} was deleted; the last committed checkpoint stands") from None
            return None
        except HTTPError:
            return None  # the cluster's API may be away for a while; the nodes speak for themselves
        conditions = jobset.get("status", {}).get("conditions", [])
        failed = [c for c in conditions if c["type"] == "Failed" and c["status"] == "True"]
        if not failed:
            return None
        return Outcome(status="failed", reason=self.cause() or f"{self._name}: {failed[0].get('message', '')}")

    def cause(self) -> str:
        return next((words for pod in self._pods() if (words := _end_of(pod))), "")

    def missing(self) -> str:
        if not self._name:
            return f"GPTPIPE_JOBSET_NODES is {self._most}; raise it if the cluster has more"
        pods = self._pods()
        waiting = [words for pod in pods if (words := _wait_of(pod))]
        if waiting:
            return f"{len(waiting)} of {len(pods)} pods of JobSet {self._name} wait: {waiting[0]}"
        return f"see `kubectl -n {self._namespace} describe jobset {self._name}`"

    def end(self) -> None:
        if not self._name:
            return
        name, self._name = self._name, ""
        try:
            client.CustomObjectsApi().delete_namespaced_custom_object(
                _GROUP, _VERSION, self._namespace, _PLURAL, name, propagation_policy="Background"
            )
        except ApiException as error:
            if error.status != 404:
                raise

    def _pods(self) -> list[Any]:
        pods = client.CoreV1Api().list_namespaced_pod(self._namespace, label_selector=f"{_LABEL}={self._name}")
        return list(pods.items)


def read_template(path: Path) -> dict[str, Any]:
    """A JobSet's YAML.

    Raises:
        UserError: it is not there, or not one with a job whose pod has a container.
    """
    try:
        template = yaml.safe_load(path.read_text("utf-8"))
        pod = template["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        if template["kind"] != "JobSet" or not pod["containers"]:
            raise KeyError("kind")
    except (OSError, yaml.YAMLError, LookupError, TypeError) as error:
        raise UserError(
            f"not the template of a JobSet ({type(error).__name__}: {error})",
            where=f"GPTPIPE_JOBSET={path}",
            hint="take infra/kubernetes/jobsets/jobset.yaml for a start",
        ) from None
    template.setdefault("metadata", {})
    return dict(template)


def filled(template: dict[str, Any], name: str, invitation: Invitation, nodes: int) -> dict[str, Any]:
    """The template with the name, as many pods as nodes, and the invitation as the first container's arguments."""
    body = copy.deepcopy(template)
    body["metadata"]["name"] = name
    job = body["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["parallelism"] = job["completions"] = nodes
    job["template"]["spec"]["containers"][0]["args"] = [invitation.model_dump_json()]
    return body


def _find_cluster() -> None:
    """A UserError when this process runs in no cluster, and no kubeconfig names one."""
    try:
        config.load_incluster_config()
    except config.ConfigException:
        try:
            config.load_kube_config()
        except (config.ConfigException, TypeError) as error:
            raise UserError(
                f"no Kubernetes cluster: {error}",
                where="GPTPIPE_JOBSET",
                hint="run the worker in the cluster, set KUBECONFIG, or leave GPTPIPE_JOBSET empty",
            ) from None


def _end_of(pod: Any) -> str:
    """Why a pod ended that did not end well; empty if it did, or runs."""
    for container in pod.status.container_statuses or []:
        ended = container.state.terminated
        if ended is not None and ended.exit_code:
            cause = "out of memory" if ended.reason == "OOMKilled" else f"exit code {ended.exit_code}"
            said = (ended.message or "").strip().splitlines()[-1:]
            return ": ".join([f"pod {pod.metadata.name} on {pod.spec.node_name} ended", cause, *said])
    return ""


def _wait_of(pod: Any) -> str:
    """What a pod waits for; empty if it runs."""
    for container in pod.status.container_statuses or []:
        if container.state.waiting is not None:
            return f"{container.state.waiting.reason}: {container.state.waiting.message or ''}".rstrip(": ")
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return str(condition.message)
    return ""
