"""What MLflow is told, on SQLite and on a real server that comes and goes."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient

from gptpipe.cli.services import is_time
from gptpipe.config import DataConfig, PipelineConfig, PromoteConfig, flatten, load_config
from gptpipe.config.settings import reload_settings, settings
from gptpipe.corpus.build import tokenize
from gptpipe.dataset.cache import TokenCache
from gptpipe.dataset.dataset import Dataset
from gptpipe.dataset.stream import TokenStream
from gptpipe.errors import UserError
from gptpipe.generation.generate import Sample, Samples
from gptpipe.services.doctor import examine
from gptpipe.services.ports import free_ports
from gptpipe.tracking import follow as following
from gptpipe.tracking import registry
from gptpipe.tracking.aliases import rollback
from gptpipe.tracking.announcement import KEPT, PROMOTED, announce
from gptpipe.tracking.client import RunLink
from gptpipe.tracking.follow import TrainingTracker
from gptpipe.tracking.moves import REFUSED_TAG
from gptpipe.tracking.registry import Registered, check_tracking, decision_of, register, resolve_weights
from gptpipe.tracking.results import DECIDING, describe, log_results
from gptpipe.tracking.training import train_and_track
from tests.fixtures.tracked import follow, lines, result_of, tracking, write_model

pytestmark = pytest.mark.usefixtures("database")


def curve(link: RunLink) -> list[tuple[int, float]]:
    history = tracking().connect().get_metric_history(link.run_id, "train/loss")
    return sorted((point.step, point.value) for point in history)


def test_an_answer_of_mlflow_that_is_lost_makes_no_point_twice(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, lost = MlflowClient.log_batch, []

    def cut_off(*given: Any, **named: Any) -> None:
        whole(*given, **named)
        if named.get("metrics") and not lost:
            lost.append(named)
            raise requests.ConnectionError("the answer did not come")

    monkeypatch.setattr(MlflowClient, "log_batch", cut_off)
    monkeypatch.setattr(following, "RETRY_SECONDS", 0.1)
    assert curve(follow(dataset, "/trainings/x", lines(1, 5))) == [(s, 10.0 / s) for s in range(1, 6)]
    assert lost


def test_a_resumed_training_logs_each_step_once_in_one_run(dataset: Dataset) -> None:
    killed = follow(dataset, "/trainings/x", lines(1, 5), lines(6, 9), status="KILLED")
    # it goes on from step 6, and the lines before it come again
    resumed = follow(dataset, "/trainings/x", lines(1, 6), lines(7, 12))
    assert resumed.run_id == killed.run_id
    assert curve(resumed) == [(s, 10.0 / s) for s in range(1, 13)]
    other = follow(dataset, "/trainings/y", lines(1, 2))
    assert other.run_id != killed.run_id


def test_a_run_says_what_was_chosen_and_what_it_read(dataset: Dataset) -> None:
    run = tracking().connect().get_run(follow(dataset, "/trainings/z", lines(1, 3)).run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.n_layer"] == "4"
    assert run.data.params["train.learning_rate"] == str(PipelineConfig().train.learning_rate)
    assert run.data.tags["gptpipe.dataset"] == dataset.id
    assert run.data.tags["prefect.flow_run_id"] == "42"
    (given,) = run.inputs.dataset_inputs
    assert given.dataset.digest == dataset.id
    assert dataset.url in given.dataset.source


def test_more_points_than_one_call_takes(dataset: Dataset) -> None:
    link = follow(dataset, "/trainings/long", lines(1, 1200))
    assert [step for step, _ in curve(link)] == list(range(1, 1201))


def test_results_registration_and_promotion(many_documents: Dataset, dataset: Dataset, tmp_path: Path) -> None:
    """The recorded losses say the opposite of what the models do: only what is scored now counts."""
    config = PipelineConfig(preset="nano")
    registered = {}
    dataset, small = many_documents, dataset
    for name, loss in (("first", 3.5), ("worse", 3.4), ("better", 3.6)):
        folder = tmp_path / name
        folder.mkdir()
        write_model(folder / "step-00000012", dataset, name)
        (folder / "metrics.jsonl").write_text('{"step": 1, "tokens": 10, "train/loss": 4.0}\n')
        link = follow(dataset, str(folder), lines(1, 3), config=config)
        result, evaluation, samples = result_of(dataset, str(folder), loss)
        for _ in range(2):  # a second time changes nothing
            picture = log_results(link, result, evaluation, samples)
            registered[name] = register(config, link, result, evaluation, samples[-1], out=str(tmp_path / "scores"))
        for _ in range(2):
            text = describe(config, link, result, evaluation, samples[-1], registered[name])
        assert picture.startswith(b"\x89PNG")
        client = tracking().connect()
        assert {item.path for item in client.list_artifacts(link.run_id)} == {
            "evaluation.html",
            "loss.png",
            "reproduce",
            "samples",
        }
        tables = {item.path for item in client.list_artifacts(link.run_id, "samples")}
        assert tables == {"samples/step-00000008.json", "samples/step-00000012.json"}
        metrics = client.get_run(link.run_id).data.metrics
        assert metrics["cross_entropy/evaluation"] == loss
        assert metrics["cross_entropy/standard_error"] == 0.1
        assert min(metrics) == DECIDING
        run, version = client.get_run(link.run_id), client.get_model_version("gptpipe", registered[name].version)
        assert run.data.tags["mlflow.note.content"] == version.description == text
        assert f"| loss | {loss:.3f} nats per token" in text
        assert f"| against the champion | {run.data.tags['decision']} |" in text
        assert run.data.tags["decision"] == version.tags["gptpipe.decision"]
        assert run.data.tags["scored_on"] == "validation split of dataset d"
        assert (run.data.tags["trigger"], run.data.tags["preset"]) == ("command line", "nano")
        assert "evaluation/word_perplexity" not in metrics
        assert len(client.get_metric_history(link.run_id, "cross_entropy/evaluation")) == 1
    assert [registered[name].version for name in ("first", "worse", "better")] == ["1", "2", "3"]
    assert client.get_model_version("gptpipe", "1").tags["gptpipe.decision"] == "there was no champion"
    assert not registered["worse"].decision.promote
    assert "surely worse" in registered["worse"].decision.reason
    assert registered["better"].decision.promote
    assert registered["better"].decision.reason == "it is the champion already"
    # it became champion when it was registered first
    version = client.get_model_version("gptpipe", "3")
    assert "95 % interval -" in version.tags["gptpipe.decision"]
    assert resolve_weights("champion", tracking(), config) == str(tmp_path / "better" / "step-00000012")
    assert resolve_weights("models:/gptpipe/1", tracking()).endswith("first/step-00000012")
    assert resolve_weights("/some/folder", tracking()) == "/some/folder"
    assert aliases() == {"champion": "3", "previous": "1", "challenger": "2"}
    assert re.search(r"\| yes \| -[^|]* \| better, the whole interval \|", version.description)
    second = client.get_model_version("gptpipe", "2").description
    assert re.search(r"\| \*\*no\*\* \| \+[^|]* \| better, the whole interval \|", second)
    # one document of validation text decides nothing, and a champion whose weights are gone stays
    folder = tmp_path / "late"
    folder.mkdir()
    write_model(folder / "step-00000012", small, "better")
    link = follow(small, str(folder), lines(1, 3))
    result, evaluation, samples = result_of(small, str(folder), 1.0)
    few = register(config, link, result, evaluation, samples[-1], out=str(tmp_path / "scores"))
    assert (few.decision.promote, few.decision.reason[:26]) == (False, "too few documents to be su")
    (tmp_path / "better" / "step-00000012" / "model.safetensors").unlink()
    gone = register(config, link, result, evaluation, samples[-1], out=str(tmp_path / "others"))
    assert not gone.decision.promote
    assert "not comparable: version 3, the champion, could not be scored" in gone.decision.reason


def aliases(name: str = "gptpipe") -> dict[str, str]:
    return {alias: str(number) for alias, number in tracking().connect().get_registered_model(name).aliases.items()}


def candidate(dataset: Dataset, folder: Path, kind: str, said: Samples | None = None) -> Callable[[], Registered]:
    """A finished training of that kind of model, which says that; called, it is registered."""
    write_model(folder / "step-00000012", dataset, kind)
    (folder / "metrics.jsonl").write_text('{"step": 1, "tokens": 10, "train/loss": 4.0}\n')
    link = follow(dataset, str(folder), lines(1, 3))
    result, evaluation, samples = result_of(dataset, str(folder), 1.0)
    out = str(folder.parent / "scores")
    return lambda: register(PipelineConfig(), link, result, evaluation, said or samples[-1], out=out)


def test_a_champion_of_the_other_architecture_is_held_against_on_the_same_text(
    many_documents: Dataset, tmp_path: Path
) -> None:
    assert candidate(many_documents, tmp_path / "first", "worse")().decision.promote
    decision = candidate(many_documents, tmp_path / "second", "qwen3")().decision
    assert decision.promote
    assert decision.reason.startswith("better: ")
    assert decision.reason.endswith("(this is a Qwen3, the champion is a GPT-2)")
    again = candidate(many_documents, tmp_path / "third", "worse")().decision
    assert not again.promote
    assert again.reason.endswith("(this is a GPT-2, the champion is a Qwen3)")


def test_a_better_model_that_gives_its_training_text_back_does_not_serve(
    many_documents: Dataset, tmp_path: Path
) -> None:
    """Nor does one that says nothing, even where nobody serves yet."""
    stream = TokenStream(many_documents, "train", TokenCache())
    tokenizer = many_documents.load_tokenizer()
    ids = stream.read(0, 60).tolist()
    learned = Samples([Sample("number", "number" + tokenizer.decode(ids), ids)], None, "", 12)
    blank = tokenizer.encode(" \n" * 40)
    empty = Samples([Sample("number", "number" + tokenizer.decode(blank), blank)], None, "", 12)
    silent = candidate(many_documents, tmp_path / "silent", "worse", empty)()
    assert not silent.decision.promote
    assert silent.decision.reason.startswith(
        "there is no champion, but this cannot be one: 100% of the samples are deg"
    )
    assert aliases() == {"challenger": "1"}
    assert candidate(many_documents, tmp_path / "first", "worse")().decision.promote
    copied = candidate(many_documents, tmp_path / "copied", "better", learned)()
    assert not copied.decision.promote
    assert "tokens of corpus:" in copied.decision.reason
    assert "come back word for word" in copied.decision.reason
    assert aliases() == {"champion": "2", "challenger": "3"}
    version = tracking().connect().get_model_version("gptpipe", "3")
    failed = [check for check in decision_of(version).checks if not check.passed]
    # text that repeats itself, as this corpus does, fails as well
    assert failed[-1].needed == "no more than 50 tokens of training text word for word in a sample"
    assert candidate(many_documents, tmp_path / "own", "better")().decision.promote


class Listener(BaseHTTPRequestHandler):
    """Keeps what it is sent in `heard` of its server, after as many refusals as `refusals` says."""

    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if server.refusals:
            server.refusals -= 1
            self.send_error(503)
            return
        server.heard.append(body)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[Any]:
    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        server.heard, server.refusals = [], 0  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_decision_is_told_once_and_after_a_kill_again(
    many_documents: Dataset, tmp_path: Path, listener: Any, caplog: pytest.LogCaptureFixture
) -> None:
    hook = f"http://127.0.0.1:{listener.server_port}/hooks/secret"
    first, worse = (candidate(many_documents, tmp_path / kind, kind) for kind in ("uniform", "worse"))
    events: list[str] = []

    def killed(event: str, payload: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    def emit(event: str, payload: dict[str, Any]) -> None:
        events.append(event)

    with pytest.raises(KeyboardInterrupt):
        announce(first(), "champion", killed, hook)
    for _ in range(2):  # the second time it is the champion already, and has been told
        announce(first(), "champion", emit, hook)
    listener.refusals = 1
    for _ in range(2):
        announce(worse(), "champion", emit, hook)
    assert events == [PROMOTED, KEPT]
    promoted, kept = listener.heard
    assert promoted["event"] == PROMOTED
    assert promoted["text"] == "gptpipe version 1 is now champion: there was no champion"
    assert (promoted["model"], promoted["version"], promoted["uri"]) == ("gptpipe", "1", "models:/gptpipe/1")
    assert kept["text"].startswith("gptpipe version 2 is not champion: ")
    assert (kept["checks"][0]["passed"], kept["checks"][0]["needed"]) == (False, "better, the whole interval")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_webhook_that_is_not_there_ends_nothing_and_its_path_is_not_shown(
    many_documents: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hook = f"http://127.0.0.1:{free_ports(1)[0]}/hooks/secret"
    events: list[str] = []
    registered = candidate(many_documents, tmp_path / "first", "worse")()
    announce(registered, "champion", lambda event, _: events.append(event), hook)
    assert events == [PROMOTED]
    (message,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert "the webhook at 127.0.0.1 was not reached" in message
    assert "secret" not in message


def test_of_two_retrainings_that_end_at_once_the_second_is_held_against_the_first(
    many_documents: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are better than the champion. While one is scored, the other becomes champion: it is as good, and stays."""
    candidate(many_documents, tmp_path / "first", "worse")()
    one = candidate(many_documents, tmp_path / "one", "better")
    other = candidate(many_documents, tmp_path / "other", "better")
    whole, calls = registry.evaluate_against, []

    def scored(*given: Any, **named: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            assert other().decision.promote
        return whole(*given, **named)

    monkeypatch.setattr(registry, "evaluate_against", scored)
    late = one()
    assert not late.decision.promote
    assert "the same loss on the same documents" in late.decision.reason
    assert aliases() == {"champion": "3", "previous": "1", "challenger": "2"}


def test_a_rollback_brings_the_one_before_back_and_the_one_that_went_stays_away(
    many_documents: Dataset, tmp_path: Path
) -> None:
    first, better = (candidate(many_documents, tmp_path / kind, kind) for kind in ("worse", "better"))
    with pytest.raises(UserError, match="gptpipe: no version is champion"):
        rollback(PromoteConfig(), tracking())
    first()
    with pytest.raises(UserError, match=r"no version was champion before .* --to VERSION"):
        rollback(PromoteConfig(), tracking())
    assert better().decision.promote
    before, now = rollback(PromoteConfig(), tracking())
    assert (before, now.version) == ("2", "1")
    assert aliases() == {"champion": "1", "previous": "2"}
    again = better()
    assert not again.decision.promote
    assert "gptpipe rollback --to 2" in again.decision.reason
    assert aliases()["champion"] == "1"
    with pytest.raises(UserError, match="version 1 is champion already"):
        rollback(PromoteConfig(), tracking(), "1")
    with pytest.raises(UserError, match="version 9"):
        rollback(PromoteConfig(), tracking(), "9")
    before, now = rollback(PromoteConfig(), tracking(), "2")
    assert (before, now.version) == ("1", "2")
    assert better().decision.reason == "it is the champion already"
    version = tracking().connect().get_model_version("gptpipe", "2")
    assert version.tags["gptpipe.decision"] == "champion again by a rollback from version 1"


def test_who_rolls_back_while_a_gate_moves_the_champion_waits_until_it_has(
    many_documents: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate(many_documents, tmp_path / "first", "worse")()
    better = candidate(many_documents, tmp_path / "better", "better")
    whole, ended, person = MlflowClient.set_registered_model_alias, list[str](), list[threading.Thread]()

    def roll_back() -> None:
        ended.append(rollback(PromoteConfig(), tracking())[1].version)

    def slow(*given: Any, **named: Any) -> Any:
        if not person:  # between two writes of the gate
            person.append(threading.Thread(target=roll_back))
            person[0].start()
            time.sleep(2)
            assert ended == []
        return whole(*given, **named)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", slow)
    assert better().decision.promote
    person[0].join(60)
    assert ended == ["1"]
    assert aliases() == {"champion": "1", "previous": "2"}
    with tracking().reached() as client:
        assert "gptpipe.rolled_back" in client.get_model_version("gptpipe", "2").tags
        assert client.get_registered_model("gptpipe").tags == {}
    assert list(Path(tracking().leases).glob("*/*")) == []


def test_a_bad_champion_goes_also_while_the_store_is_away(
    many_documents: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for kind in ("worse", "better"):
        candidate(many_documents, tmp_path / kind, kind)()
    before, now = rollback(PromoteConfig(), replace(tracking(), leases="/proc/nothing"))
    assert (before, now.version) == ("2", "1")
    assert "nobody is kept from moving the aliases of gptpipe meanwhile" in caplog.text


def test_what_a_person_says_while_the_champion_is_scored_counts(
    many_documents: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate(many_documents, tmp_path / "first", "worse")()
    better, whole = candidate(many_documents, tmp_path / "better", "better"), registry.evaluate_against

    def refused_meanwhile(*given: Any, **named: Any) -> Any:
        tracking().connect().set_model_version_tag("gptpipe", "2", REFUSED_TAG, "1")
        return whole(*given, **named)

    monkeypatch.setattr(registry, "evaluate_against", refused_meanwhile)
    registered = better()
    assert not registered.decision.promote
    assert registered.decision.reason.startswith("a person refused it")
    assert aliases() == {"champion": "1"}


@pytest.mark.parametrize("weights", ["models:/nobody@champion", "models:/gptpipe/9", "champion"])
def test_models_that_are_not_registered(weights: str) -> None:
    with pytest.raises(UserError, match=r"(not found|does not exist)"):
        resolve_weights(weights, tracking())


class Server:
    """A real `mlflow server` that can be started and killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_ports(1)[0]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--port",
            str(self.port),
            "--workers",
            "1",
            "--backend-store-uri",
            f"sqlite:///{self.folder / 'server.db'}",
            "--artifacts-destination",
            str(self.folder / "artifacts"),
        ]
        self.process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 90
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2)
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError("mlflow server did not start")

    def kill(self) -> None:
        import os

        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server(tmp_path)
    monkeypatch.setenv("GPTPIPE_MLFLOW_URI", made.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    reload_settings()
    yield made
    made.kill()


@pytest.mark.slow
@pytest.mark.stack
def test_a_server_that_comes_late_gets_everything(
    server: Server, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "RETRY_SECONDS", 0.2)
    tracker = TrainingTracker(tracking(), PipelineConfig(), dataset, {})
    tracker.start("/trainings/late")
    began = time.monotonic()
    tracker.add(lines(1, 50))
    assert time.monotonic() - began < 0.1  # the training does not wait
    server.start()
    tracker.add(lines(51, 60))
    link = tracker.finish("FINISHED")
    assert link is not None
    assert [step for step, _ in curve(link)] == list(range(1, 61))
    assert (
        link.how_to_open
        == f"{server.uri}/#/experiments/{link.experiment_id}/runs/{link.run_id}?workflowType=machine_learning"
    )


@pytest.mark.stack
def test_a_server_that_is_away_ends_no_training(server: Server, dataset: Dataset) -> None:
    tracker = TrainingTracker(tracking(), PipelineConfig(), dataset, {})
    tracker.start("/trainings/away")
    tracker.add(lines(1, 5))
    assert tracker.finish("FINISHED") is None


def test_a_server_registers_no_local_folder(server: Server) -> None:
    with pytest.raises(UserError, match="registers no model from a local folder"):
        check_tracking(PipelineConfig(), tracking(), settings().storage_url)


ODD = " !\"#$%&'()*+,-.;<=>@[\\]^_`{|}~é"  # every printable character but those that no path, or no model, may hold


def test_places_and_names_with_every_character_are_found_again(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTPIPE_HOME", str(tmp_path / f"home{ODD}:"))  # the database there is made anew
    monkeypatch.setenv("GPTPIPE_EXPERIMENT", f"nightly{ODD}/:?")
    reload_settings()
    training = str(tmp_path / f"trainings{ODD}:?" / "abc")
    first = follow(dataset, training, lines(1, 3))
    assert follow(dataset, training.replace("'", "_"), lines(1, 2)).run_id != first.run_id
    assert follow(dataset, training, lines(1, 5)).run_id == first.run_id

    Path(training).mkdir(parents=True)
    result, evaluation, samples = result_of(dataset, training, 2.0)
    write_model(Path(result.best_checkpoint), dataset, "uniform")
    config = PipelineConfig(promote={"model_name": f"gpt{ODD}?"})
    log_results(first, result, evaluation, samples)
    registered = register(config, first, result, evaluation, samples[-1], out=str(tmp_path / "evaluations"))
    assert registered.decision.promote
    assert resolve_weights("champion", tracking(), config) == result.best_checkpoint
    assert resolve_weights(registered.uri, tracking()) == result.best_checkpoint


@pytest.mark.parametrize("name", ["a/b", "a:b", " ", "a\nb"])
def test_a_model_name_that_mlflow_would_refuse_is_refused_first(name: str) -> None:
    with pytest.raises(UserError, match=r"promote\.model_name: .* is no name of a model"):
        load_config(promote={"model_name": name})


@pytest.mark.parametrize("alias", ["latest", "v7"])
def test_an_alias_that_mlflow_keeps_for_itself_is_refused_first(alias: str) -> None:
    with pytest.raises(UserError, match=r"promote\.alias: .* keeps for itself"):
        load_config(promote={"alias": alias})


def test_an_experiment_that_was_deleted_is_said_before_the_first_step(dataset: Dataset) -> None:
    client = tracking().connect()
    client.delete_experiment(tracking().experiment_id(client))
    with pytest.raises(UserError, match=r"was deleted.*experiments restore"):
        check_tracking(PipelineConfig(), tracking(), settings().storage_url)
    with pytest.raises(UserError, match="was deleted"):
        wait_for_refusal(dataset, "/trainings/deleted")
    found = next(check for check in examine(settings(), is_time) if check.name == "tracking")
    assert found.ok is False
    assert "was deleted" in found.detail


def wait_for_refusal(dataset: Dataset, training: str) -> None:
    """What a training does whose first lines come when MLflow has refused it."""
    tracker = TrainingTracker(tracking(), PipelineConfig(), dataset, {})
    tracker.start(training)
    tracker._thread.join(30)
    tracker.add(lines(1, 1))


def test_a_fault_of_our_own_shows_itself_and_is_not_waited_for(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "git_tags", lambda: {}["our fault"])
    with pytest.raises(KeyError, match="our fault"):
        wait_for_refusal(dataset, "/trainings/fault")


FEATURES: dict[str, dict[str, Any]] = {
    "mixture": {"train": {"mixture": {"a": 1.0, "b": 2.0}}},
    "two levels": {"train": {"shuffle": "two-level"}},
    "muon": {"train": {"optimizer": "muon", "schedule": "wsd"}},
    "documents apart": {"train": {"join_documents": False}, "evaluate": {"documents": "apart"}},
    "weights": {"init": "somewhere/it's", "init_context_length": 64},
    "tasks": {"evaluate": {"tasks": ["lambada:a.jsonl"], "data": "other"}},
    "several texts": {"data": {"corpus": ["a'b.txt", "s3://x/y"]}},
    "micro-batch": {"train": {"micro_batch": 3, "compile": False, "nodes": 2, "min_nodes": 1}},
    "export": {"export": "/tmp/x", "sample": {"prompts": ["", "é\n"], "stop": ["."]}},
}


def test_every_feature_is_tracked(dataset: Dataset) -> None:
    for feature, values in FEATURES.items():
        config = PipelineConfig(**values)
        tracker = TrainingTracker(tracking(), config, dataset, {})
        tracker.start(f"/trainings/{feature}")
        tracker.add(lines(1, 3))
        link = tracker.finish("FINISHED")
        assert link is not None, feature
        run = tracking().connect().get_run(link.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.params == {key: str(value) for key, value in flatten(config).items()}
        assert run.data.metrics["train/loss"] == pytest.approx(10 / 3)
        assert run.data.metrics["train/tokens"] == 30
        profile = json.loads(run.inputs.dataset_inputs[0].dataset.profile)
        assert profile["train_tokens"] == dataset.total("tokens", "train") > 0


def test_a_training_with_a_mixture_is_tracked_end_to_end(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} {number} some words to learn\n" * 20)
    corpora = [{"name": name, "url": str(tmp_path / name)} for name in ("a", "b")]
    made = tokenize(DataConfig(corpus=corpora, validation=0.3), str(tmp_path / "datasets"))
    shape = {"n_layer": 1, "n_head": 1, "n_embd": 8, "context_length": 16}
    train = {"steps": 3, "batch_size": 2, "mixture": {"a": 1.0, "b": 3.0}, "validate_tokens": 32}
    config = PipelineConfig(model=shape, train=train)
    result, link = train_and_track(config, tracking(), data=made.dataset, out=str(tmp_path / "trainings"))
    assert result.steps == 3
    assert link is not None
    run = tracking().connect().get_run(link.run_id)
    assert run.data.params["train.mixture.b"] == "3.0"
    assert [point.step for point in tracking().connect().get_metric_history(link.run_id, "train/loss")][-1] == 3
    # a later night finds it done: the run stays what it was
    night = {"trigger": "schedule", "prefect.flow_run_id": "another"}
    again, _ = train_and_track(config, tracking(), data=made.dataset, out=str(tmp_path / "trainings"), tags=night)
    assert again.already_done
    after = tracking().connect().get_run(link.run_id)
    assert (after.info.status, after.info.end_time) == ("FINISHED", run.info.end_time)
    assert after.data.tags == {**run.data.tags, "prefect.flow_run_id": "another"}  # only what had been missing
    assert after.data.metrics == run.data.metrics
