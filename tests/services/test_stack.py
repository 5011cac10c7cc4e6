"""The local stack, real: SeaweedFS, PostgreSQL, Prefect, MLflow and a worker, started, killed, and stopped."""

from __future__ import annotations

import http.server
import json
import os
import secrets
import socket
import ssl
import stat
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from gptpipe import storage
from gptpipe.services.server_logs import traceback_ends
from tests.fixtures.environment import begin_again
from tests.fixtures.place import GPTPIPE, Place, end_at_once, folder_for_all, some_ports, stack_in

DEPLOYMENTS = [
    "clean/old-files",
    "evaluate/evaluate",
    "retrain/nightly",
    "retrain/on-demand",
    "retrain/on-new-data",
    "score-champion/watch-champion",
    "sweep/on-demand",
    "watch-corpora/watch-corpora",
]
TEXT = "def add(a, b):\n    return a + b\n\n\ndef mean(values):\n    return sum(values) / len(values)\n\n\n" * 60

TINY = {"n_layer": 1, "n_head": 2, "n_embd": 16, "context_length": 32}
SHORT = {"steps": 6, "warmup_steps": 1, "batch_size": 4, "validate_every": 3, "checkpoint_every": 3}
PAGES = {"PREFECT": "api/admin/version", "MLFLOW": "version"}

pytestmark = pytest.mark.stack


def first_byte(host: str, port: int) -> bytes:
    """What a port with TLS says to somebody without a certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, port), 10) as plain, context.wrap_socket(plain) as private:
        private.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        return private.recv(1)


def status(place: Place, name: str, path: str, headers: dict[str, str] | None = None) -> int:
    """What a server answers."""
    request = urllib.request.Request(f"http://{place.host}:{place.ports[name]}/{path}", headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def stack() -> Iterator[Place]:
    with folder_for_all("stack") as folder, stack_in(folder) as place:
        answer = json.loads((place.folder / "up.json").read_text())
        assert answer["deployments"] == DEPLOYMENTS
        assert answer["prefect"] == f"http://127.0.0.1:{place.ports['PREFECT']}"
        yield place


def test_all_are_well_listen_here_only_and_keep_their_secrets(stack: Place) -> None:
    done = stack.call("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["stack"]["ok"], checks["stack"]
    assert checks["storage"]["detail"].startswith("s3://gptpipe ")
    assert checks["tracking"]["ok"]
    assert checks["prefect"]["ok"]
    assert len(stack.listeners()) == 4
    ours = stack.processes()
    heard = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in ours]
    assert len(heard) > 9  # the object store's inner ports and the worker's among them
    assert {(ours[c.pid].name(), c.laddr.port) for c in heard if c.laddr.ip != "127.0.0.1"} == set()
    drawn = json.loads((stack.folder / ".gptpipe" / "stack" / "secrets.json").read_text())
    for process in ours.values():  # everybody on the machine may read these
        with suppress(psutil.Error):
            assert not any(secret in " ".join(process.cmdline()) for secret in drawn.values()), process.name()
    assert checks["logs"]["ok"], checks["logs"]
    assert checks["schedules"]["detail"] == "no deployment is scheduled"
    assert (stack.folder / ".gptpipe").stat().st_mode & 0o066 == 0
    for name in ("secrets.json", "stack.env", "supervisord.conf"):
        assert stat.S_IMODE((stack.folder / ".gptpipe" / "stack" / name).stat().st_mode) == 0o600
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"http://127.0.0.1:{stack.ports['S3']}/gptpipe/.ready", timeout=10)
    inner = json.loads((stack.folder / ".gptpipe" / "stack" / "ports.json").read_text())
    for name in ("master", "filer", "volume"):  # a page in a browser may ask these too, and needs no answer
        for path in ("/buckets/gptpipe/.ready", "/dir/assign", "/col/delete?collection=gptpipe"):
            with pytest.raises(urllib.error.HTTPError, match=r"40\d"):
                urllib.request.urlopen(f"http://127.0.0.1:{inner[name]}{path}", timeout=10)
    lured = {"Host": "evil.example.com"}, {"Origin": "http://evil.example.com"}, {"Origin": "http://127.0.0.1:9"}
    for name, path in PAGES.items():
        assert status(stack, name, path) == 200
        assert [status(stack, name, path, headers) for headers in lured] == [400, 403, 403]


@pytest.mark.slow
def test_where_other_machines_reach_it_everybody_is_asked_for_a_password() -> None:
    webhook = f"http://127.0.0.1:9/hook-{secrets.token_hex(8)}"
    with folder_for_all("open") as folder, stack_in(folder, "0.0.0.0", GPTPIPE_WEBHOOK=webhook) as place:
        for name, path in PAGES.items():
            assert status(place, name, path) == 401
            assert status(place, name, path, {"Authorization": "Basic Z3B0cGlwZTpndWVzcw=="}) == 401
            assert status(place, name, path, place.login()) == 200
            assert status(place, name, path, {**place.login(), "Host": "evil.example.com"}) == 400
        ours = place.processes()
        heard = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in ours]
        open_ports = {c.laddr.port for c in heard if c.laddr.ip not in ("127.0.0.1", "::1")}
        inner = json.loads((folder / ".gptpipe" / "stack" / "ports.json").read_text())["s3.grpc"]
        assert open_ports == {inner, *(place.ports[name] for name in ("PREFECT", "MLFLOW", "S3"))}
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
            first_byte("127.0.0.1", inner)
        done = place.call("doctor", "--json")
        assert done.returncode == 0, done.stdout
        assert "password" in place.call("up").stdout
        text = folder / "text.py"
        text.write_text(TEXT)
        run = place.press_run("retrain/on-demand", data={"corpus": [{"url": str(text)}]}, model=TINY, train=SHORT)
        place.wait_for(run, "COMPLETED", 200)
        place.wait_for_words("the webhook")
        drawn: dict[str, str] = json.loads((folder / ".gptpipe" / "stack" / "secrets.json").read_text())
        hidden = [value for name, value in drawn.items() if name != "s3_access"]  # that one is a name
        assert secrets_in(place, [*hidden, webhook]) == []


def secrets_in(place: Place, hidden: list[str]) -> list[str]:
    """Where one stands, of all that is on the disk, in the object store or on Prefect's pages."""
    keepers = ("secrets.json", "stack.env", "supervisord.conf")  # which only their owner may read
    found = []
    for file in place.folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and file.name not in keepers:
            with suppress(OSError):  # the servers work on
                content = file.read_bytes()
                found += [str(file) for secret in hidden if secret.encode() in content]
    os.environ.update(place.stack_environment())
    begin_again()
    for entry in storage.list_files("s3://gptpipe"):
        content = storage.read_bytes(entry.url)
        found += [entry.url for secret in hidden if secret.encode() in content]
    for kind in ("logs", "artifacts", "flow_runs", "task_runs", "deployments"):
        told = json.dumps(place.prefect(f"{kind}/filter", {"limit": 200}))
        assert len(told) > 2, kind
        found += [kind for secret in hidden if secret in told]
    return found


@pytest.mark.slow
def test_a_second_up_changes_nothing(stack: Place) -> None:
    before, deployed = stack.listeners(), stack.deployments()
    done = stack.call("up")
    assert done.returncode == 0, done.stderr
    assert stack.listeners() == before
    after = stack.deployments()
    assert {name: one["id"] for name, one in after.items()} == {name: one["id"] for name, one in deployed.items()}
    assert sorted(after) == DEPLOYMENTS
    assert f"http://127.0.0.1:{stack.ports['MLFLOW']}" in done.stdout


@pytest.mark.slow
def test_a_member_that_crashes_is_started_again(stack: Place) -> None:
    _, pid = stack.listeners()["MLFLOW"]
    # the listener is a child of the program: all of it goes, as it does when memory runs out
    program = next(p for p in [psutil.Process(pid), *psutil.Process(pid).parents()] if "server" in p.cmdline())
    for process in [program, *program.children(recursive=True)]:
        process.kill()
    until = time.monotonic() + 60
    while True:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{stack.ports['MLFLOW']}/health", timeout=2):
            break
        assert time.monotonic() < until
        time.sleep(0.2)
    assert stack.listeners()["MLFLOW"][1] != pid


@pytest.mark.slow
def test_deploying_takes_the_schedule_and_removes_what_is_not_named_any_more(stack: Place) -> None:
    api = {"PREFECT_API_URL": f"http://127.0.0.1:{stack.ports['PREFECT']}/api"}
    flow_id = stack.deployments()["retrain/on-demand"]["flow_id"]
    for name, tags in (("renamed", ["gptpipe"]), ("somebody-elses", [])):
        stack.prefect("deployments/", {"name": name, "flow_id": flow_id, "tags": tags})
    done = stack.call("deploy", GPTPIPE_NIGHTLY_CRON="0 2 * * *", GPTPIPE_TIMEZONE="Europe/Berlin", **api)
    assert done.returncode == 0, done.stderr
    found = stack.deployments()
    assert sorted(found) == sorted([*DEPLOYMENTS, "retrain/somebody-elses"])
    (schedule,) = found["retrain/nightly"]["schedules"]
    assert schedule["slug"] == "from-env"
    assert schedule["schedule"]["cron"] == "0 2 * * *"
    assert schedule["schedule"]["timezone"] == "Europe/Berlin"
    assert stack.call("deploy", **api).returncode == 0
    assert stack.deployments()["retrain/nightly"]["schedules"] == []
    wrong = stack.call("deploy", GPTPIPE_NIGHTLY_CRON="0 25 * * *", **api)
    assert wrong.returncode == 2
    assert "GPTPIPE_NIGHTLY_CRON" in wrong.stderr
    assert wrong.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_run_that_is_asked_for_is_trained_by_the_worker(stack: Place) -> None:
    text = stack.folder / "text.py"
    text.write_text(TEXT)
    parameters = {
        "data": {"corpus": [{"url": str(text)}]},
        "model": TINY,
        "train": SHORT,
    }
    deployment = stack.deployments()["retrain/on-demand"]["id"]
    run = stack.prefect(f"deployments/{deployment}/create_flow_run", {"parameters": {"parameters": parameters}})
    until = time.monotonic() + 200
    while True:
        (found,) = stack.prefect("flow_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        if found["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            break
        assert time.monotonic() < until, found["state"]
        time.sleep(1)
    logs = stack.prefect("logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})
    assert found["state"]["type"] == "COMPLETED", [one["message"] for one in logs][-20:]
    assert any("step 6/6" in one["message"] for one in logs)  # a subflow's lines are on the page of this run
    made = stack.prefect("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
    artifacts = {one["key"]: one for one in made}
    assert artifacts["training-progress"]["data"] == 100
    assert "step 6/6" in artifacts["training-progress"]["description"]
    assert "data:image/png;base64" in artifacts["training-curve"]["data"]
    address = f"http://127.0.0.1:{stack.ports['MLFLOW']}/#/"
    for link in (f"{address}experiments/", f"{address}models/gptpipe/versions/1"):
        assert link in artifacts["retrain"]["data"]
    for wrong in ({"train": {"steps": -1}}, {"train": {"stepz": 1}}, {"stepz": 1}):
        with pytest.raises(urllib.error.HTTPError, match="409"):  # the server itself refuses what does not fit
            stack.prefect(f"deployments/{deployment}/create_flow_run", {"parameters": {"parameters": wrong}})


def numbers(place: Place) -> set[int]:
    """Processes of the stack."""
    folder = str(place.folder / ".gptpipe" / "stack")
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(folder in word for word in process.cmdline()):
                found.add(process.pid)
    return found


def is_well(place: Place) -> None:
    """All members answer, and one of them lets this folder's commands write."""
    done = place.call("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    for name in ("stack", "storage", "tracking", "prefect", "workers"):
        assert checks[name]["ok"], checks[name]


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, b"{"])
@pytest.mark.parametrize("name", ["supervisord.pid", "supervisord.conf", "secrets.json", "ports.json", "stack.env"])
def test_up_puts_right_what_has_lost_a_file_of_its_own(stack: Place, name: str, content: bytes | None) -> None:
    file = stack.folder / ".gptpipe" / "stack" / name
    before = numbers(stack)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    done = stack.call("up")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    if name in ("supervisord.pid", "stack.env"):
        assert numbers(stack) == before, "nothing was started again"
    is_well(stack)


@pytest.mark.slow
def test_two_up_and_a_down_at_once_do_one_after_another(stack: Place) -> None:
    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [GPTPIPE, *words], cwd=stack.folder, env=stack.environment(), stderr=subprocess.PIPE, text=True
        )

    assert stack.call("down").returncode == 0
    for words in (("up", "up"), ("down", "up"), ("up", "down"), ("up", "up")):
        both = []
        for word in words:
            both.append(start(word))
            time.sleep(0.4)
        said = [process.communicate(timeout=300)[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        assert "waiting for another" in said[1]
        assert "Traceback" not in "".join(said)
    is_well(stack)


@pytest.mark.slow
def test_two_up_at_once_in_a_fresh_folder_make_one_stack() -> None:
    with folder_for_all("fresh") as folder:
        place = Place(folder, some_ports())
        words = [GPTPIPE, "up"]
        both = [
            subprocess.Popen(words, cwd=folder, env=place.environment(), stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        try:
            said = [process.communicate(timeout=300)[1] for process in both]
            assert [process.returncode for process in both] == [0, 0], said
            is_well(place)
        finally:
            end_at_once(place)


@pytest.mark.slow
def test_passwords_that_are_lost_while_all_is_down_are_drawn_again(stack: Place) -> None:
    folder = stack.folder / ".gptpipe" / "stack"
    assert stack.call("down").returncode == 0
    (folder / "secrets.json").unlink()
    done = stack.call("up")
    assert done.returncode == 0, done.stderr
    is_well(stack)


@pytest.mark.slow
def test_servers_without_their_supervisor_are_told_and_stopped(stack: Place) -> None:
    psutil.Process(int((stack.folder / ".gptpipe" / "stack" / "supervisord.pid").read_text())).kill()
    done = stack.call("doctor", "--json")
    (check,) = (each for each in json.loads(done.stdout)["checks"] if each["name"] == "stack")
    assert (check["ok"], "supervisor is gone" in check["detail"]) == (False, True), check
    done = stack.call("down")
    assert done.stdout.startswith("stopped"), done.stdout
    assert not numbers(stack)
    ports = json.loads((stack.folder / ".gptpipe" / "stack" / "ports.json").read_text())
    left = [f"seaweedfs-*-{port}.sock" for port in (*ports.values(), stack.ports["S3"])]
    assert not [found for pattern in left for found in Path(tempfile.gettempdir()).glob(pattern)]
    assert stack.call("up").returncode == 0
    is_well(stack)


@pytest.mark.slow
def test_after_the_supervisor_was_killed_up_brings_all_back(stack: Place) -> None:
    run_names = {one["name"] for one in stack.prefect("flow_runs/filter", {})}
    pid = int((stack.folder / ".gptpipe" / "stack" / "supervisord.pid").read_text())
    psutil.Process(pid).kill()
    done = stack.call("up")
    assert done.returncode == 0, done.stderr
    assert {one["name"] for one in stack.prefect("flow_runs/filter", {})} == run_names
    assert sorted(stack.deployments()) == sorted([*DEPLOYMENTS, "retrain/somebody-elses"])


def test_tracebacks_of_a_log_are_told_by_their_ends() -> None:
    log = """12:00 | ERROR | loop failed
Traceback (most recent call last):
  File "a.py", line 1, in <module>
    one()
sqlalchemy.exc.InvalidRequestError: Can't evaluate bulk DML statement
12:01 | INFO | goes on
  + Exception Group Traceback (most recent call last):
Traceback (most recent call last):
  File "b.py", line 1, in <module>
"""
    assert traceback_ends(log) == [
        "sqlalchemy.exc.InvalidRequestError: Can't evaluate bulk DML statement",
        "it is cut off",
    ]
    assert traceback_ends("12:01 | INFO | all is well\n") == []


def test_a_taken_port_is_named_with_who_holds_it(tmp_path: Path) -> None:
    place = Place(tmp_path, some_ports())
    server = http.server.HTTPServer(("127.0.0.1", place.ports["PREFECT"]), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        done = place.call("up")
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 2
    assert f"GPTPIPE_PREFECT_PORT: port {place.ports['PREFECT']} is taken by " in done.stderr
    assert f"process {os.getpid()}" in done.stderr
    assert not place.processes()


@pytest.mark.slow
def test_down_stops_all_and_keeps_the_data(stack: Place) -> None:
    ran = stack.processes()
    assert len(ran) > 5
    done = stack.call("down")
    assert done.returncode == 0, done.stderr
    assert not psutil.wait_procs(list(ran.values()), timeout=5)[1]
    assert not stack.listeners()
    assert not (stack.folder / ".gptpipe" / "stack" / "stack.env").exists()
    assert (stack.folder / ".gptpipe" / "stack" / "postgres" / "PG_VERSION").exists()
    again = stack.call("down")
    assert (again.returncode, again.stdout) == (0, "nothing was running\n")
