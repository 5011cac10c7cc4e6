"""A better version that waits for a person: it becomes champion with the person's word, and only with it."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gptpipe.cli.app import app
from gptpipe.config import EvaluateConfig, load_config
from gptpipe.config.settings import reload_settings
from gptpipe.dataset.dataset import Dataset
from gptpipe.errors import UserError
from gptpipe.evaluation.once import evaluate_once
from gptpipe.tracking.aliases import ChampionChanged, answer, settled
from gptpipe.tracking.announcement import KEPT, PROMOTED, WAITING, announce
from gptpipe.tracking.client import RunLink
from gptpipe.tracking.history import history
from gptpipe.tracking.moves import champion_number
from gptpipe.tracking.registry import Registered, register
from gptpipe.tracking.results import log_results
from tests.fixtures.datasets import serving
from tests.fixtures.tracked import follow, result_of, tracking, write_model

pytestmark = pytest.mark.usefixtures("database")
ALONE = load_config(overrides=["promote.max_copied=0"])
ASKED = load_config(overrides=["promote.max_copied=0", "promote.approval_hours=1"])


def trained(dataset: Dataset, folder: Path, kind: str) -> RunLink:
    folder.mkdir()
    write_model(folder / "step-00000012", dataset, kind)
    link = follow(dataset, str(folder), [{"step": 12, "tokens": 1200, "train/loss": 4.0}])
    result, evaluation, samples = result_of(dataset, str(folder), 4.0)
    log_results(link, result, evaluation, samples)
    return link


def registered(dataset: Dataset, folder: Path, link: RunLink, *, asked: bool = True) -> Registered:
    result, _, samples = result_of(dataset, str(folder), 4.0)
    out = str(folder.parent / "scores")
    evaluation = evaluate_once(result.best_checkpoint, data=dataset.url, config=EvaluateConfig(), out=out)
    return register(ASKED if asked else ALONE, link, result, evaluation, samples[-1], out=out)


def champion() -> str:
    with tracking().reached() as client:
        return champion_number(client, ASKED.promote)


def test_it_waits_and_becomes_champion_when_a_person_agrees(many_documents: Dataset, tmp_path: Path) -> None:
    link = trained(many_documents, tmp_path / "first", "uniform")
    first = registered(many_documents, tmp_path / "first", link)
    assert (first.waits, first.decision.promote, champion()) == (True, False, "")
    assert first.decision.reason == "waits for a person's approval: there was no champion"
    told: list[str] = []
    announce(first, "champion", lambda event, _: told.append(event))
    settled = answer(ASKED.promote, tracking(), "1", agreed=True, note="looks fine")
    assert (settled.decision.promote, champion()) == (True, "1")
    assert settled.decision.reason == "approved by a person (looks fine): there was no champion"
    announce(settled, "champion", lambda event, _: told.append(event))
    assert told == [WAITING, PROMOTED]
    with pytest.raises(UserError, match="waits for nobody's approval"):
        answer(ASKED.promote, tracking(), "1", agreed=True)


def test_what_a_person_refused_is_not_asked_again_but_may_be_agreed_to_later(
    many_documents: Dataset, tmp_path: Path
) -> None:
    link = trained(many_documents, tmp_path / "first", "uniform")
    first = registered(many_documents, tmp_path / "first", link)
    refused = answer(ASKED.promote, tracking(), "1", agreed=False, note="too early")
    assert (refused.decision.promote, champion()) == (False, "")
    told: list[str] = []
    announce(refused, "champion", lambda event, _: told.append(event))
    assert told == [KEPT]
    again = registered(many_documents, tmp_path / "first", link)
    assert (again.waits, again.version, champion()) == (False, first.version, "")
    assert "`gptpipe approve 1`" in again.decision.reason
    printed = CliRunner().invoke(app, ["approve", "1", "--json"])
    assert printed.exit_code == 0, printed.output
    assert json.loads(printed.stdout)["champion"] is True
    assert champion() == "1"


def test_a_champion_that_came_meanwhile_is_compared_with_before_the_answer_counts(
    many_documents: Dataset, tmp_path: Path
) -> None:
    waiting = trained(many_documents, tmp_path / "waiting", "uniform")
    assert registered(many_documents, tmp_path / "waiting", waiting).waits
    other = trained(many_documents, tmp_path / "other", "better")
    assert registered(many_documents, tmp_path / "other", other, asked=False).decision.promote
    with pytest.raises(ChampionChanged, match="compared with version none, but version 2 is champion"):
        answer(ASKED.promote, tracking(), "1", agreed=True)
    assert champion() == "2"
    again = registered(many_documents, tmp_path / "waiting", waiting)
    assert (again.waits, again.decision.promote, champion()) == (False, False, "2")
    assert "surely worse" in again.decision.reason
    with pytest.raises(UserError, match="waits for nobody's approval"):  # it is not better any more
        answer(ASKED.promote, tracking(), "1", agreed=True)


def test_the_history_says_that_it_waits_and_bad_numbers_are_one_line(many_documents: Dataset, tmp_path: Path) -> None:
    registered(many_documents, tmp_path / "first", trained(many_documents, tmp_path / "first", "uniform"))
    assert [entry.verdict for entry in history(tracking(), "gptpipe", 0.0).entries] == ["waits"]
    for number in ("7", "champion"):
        result = CliRunner().invoke(app, ["approve", number])
        assert isinstance(result.exception, UserError)
        assert f"gptpipe version {number}" in str(result.exception)


def test_an_approved_version_is_no_challenger_and_who_waits_for_the_answer_learns_of_it(
    many_documents: Dataset, tmp_path: Path
) -> None:
    link = trained(many_documents, tmp_path / "first", "uniform")
    first = registered(many_documents, tmp_path / "first", link)
    model = tracking().connect().get_registered_model
    assert model("gptpipe").aliases == {"challenger": 1}
    assert settled(ASKED.promote, first) is first
    printed = CliRunner().invoke(app, ["approve", "1", "--set", "promote.approval_hours=1"])
    assert printed.exit_code == 0, printed.output
    assert model("gptpipe").aliases == {"champion": 1}
    then = settled(ASKED.promote, first)
    assert (then.waits, then.decision.promote) == (False, True)
    assert then.decision.reason == "approved by a person: there was no champion"
    assert then.decision.checks == first.decision.checks


def test_what_a_person_decides_is_told_once_each_time(
    many_documents: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, kind in (("first", "uniform"), ("second", "better")):
        registered(many_documents, tmp_path / name, trained(many_documents, tmp_path / name, kind))
    heard: list[dict[str, str]] = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

    with serving(Listener) as address:
        monkeypatch.setenv("GPTPIPE_WEBHOOK", address)
        reload_settings()
        for words in (["approve", "2", "--refuse"], ["approve", "1"], ["rollback", "--to", "2"]):
            printed = CliRunner().invoke(app, words)
            assert printed.exit_code == 0, printed.output
    assert [(each["event"], each["version"]) for each in heard] == [(KEPT, "2"), (PROMOTED, "1"), (PROMOTED, "2")]


def test_only_the_last_answer_of_a_person_is_told(many_documents: Dataset, tmp_path: Path) -> None:
    registered(many_documents, tmp_path / "first", trained(many_documents, tmp_path / "first", "uniform"))
    answer(ASKED.promote, tracking(), "1", agreed=False, note="too early")
    agreed = answer(ASKED.promote, tracking(), "1", agreed=True)
    assert agreed.decision.reason == "approved by a person: there was no champion"
