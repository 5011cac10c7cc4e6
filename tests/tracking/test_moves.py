"""What moves the champion's alias is killed before each of its writes in turn, and asked for again: nothing differs."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from gptpipe.config.settings import settings
from gptpipe.dataset.dataset import Dataset
from gptpipe.tracking.aliases import answer, rollback
from gptpipe.tracking.moves import MOVE_TAG
from tests.fixtures.tracked import tracking
from tests.tracking.test_approval import ALONE, ASKED, registered, trained

pytestmark = pytest.mark.usefixtures("database")
WRITES = [name for name in dir(MlflowClient) if name.startswith(("create_", "set_", "update_", "delete_"))]


class KilledError(BaseException):
    """In place of a kill: nothing in the code catches it."""


@contextmanager
def killed_before(write: int) -> Iterator[list[str]]:
    """Whoever asks MLflow for that many writes is gone before the last of them; what was written until then."""
    done: list[str] = []

    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if len(done) == write:
                raise KilledError
            done.append(name)
            return method(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in WRITES:
            patch.setattr(MlflowClient, name, counted(name, getattr(MlflowClient, name)))
        yield done


def state() -> dict[str, Any]:
    """Aliases, and the tags and descriptions of all versions."""
    with tracking().reached() as client:
        model = client.get_registered_model("gptpipe")
        versions = sorted(client.search_model_versions("name='gptpipe'"), key=lambda each: int(each.version))
        told = {each.version: (dict(each.tags), each.description) for each in versions}
        aliases = {alias: str(version) for alias, version in model.aliases.items()}
        return {"aliases": aliases, "tags": dict(model.tags), "versions": told}


def check_each_kill(do: Callable[[], Any]) -> int:
    """Do it once undisturbed, and then from the same beginning killed before each write; how many writes there are."""
    database = settings().home_path / "mlflow.db"
    before = database.with_name("before.db")
    shutil.copy(database, before)
    with killed_before(-1) as writes:
        said = do()
    expected = state()
    assert MOVE_TAG not in expected["tags"]
    for number in range(len(writes)):
        shutil.copy(before, database)
        with killed_before(number) as done, pytest.raises(KilledError):
            do()
        again = do()
        assert state() == expected, f"killed after {done}"
        if number < len(writes) - 1:
            assert again == said, f"killed after {done}"
    return len(writes)


def test_a_gate_that_is_killed_between_its_writes_is_as_if_it_had_not_been(
    many_documents: Dataset, tmp_path: Path
) -> None:
    def gate(name: str, link: Any) -> Any:
        found = registered(many_documents, tmp_path / name, link, asked=False)
        return found.version, found.decision

    gate("first", trained(many_documents, tmp_path / "first", "uniform"))
    second = trained(many_documents, tmp_path / "second", "better")
    assert check_each_kill(lambda: gate("second", second)) > 8
    gate("third", trained(many_documents, tmp_path / "third", "worse"))
    assert state()["aliases"] == {"champion": "2", "previous": "1", "challenger": "3"}


@pytest.mark.slow
def test_an_answer_and_a_rollback_that_are_killed_are_taken_up_by_the_same_words(
    many_documents: Dataset, tmp_path: Path
) -> None:
    registered(many_documents, tmp_path / "first", trained(many_documents, tmp_path / "first", "uniform"), asked=False)
    registered(many_documents, tmp_path / "second", trained(many_documents, tmp_path / "second", "better"))

    def answered(agreed: bool) -> Any:
        found = answer(ASKED.promote, tracking(), "2", agreed=agreed, note="fine")
        return found.version, found.decision.promote, found.decision.reason

    def rolled_back() -> Any:
        before, now = rollback(ALONE.promote, tracking())
        return before, now.version, now.decision.reason

    assert check_each_kill(lambda: answered(False)) > 3
    assert state()["aliases"] == {"champion": "1", "challenger": "2"}
    assert check_each_kill(lambda: answered(True)) > 5
    assert state()["aliases"] == {"champion": "2", "previous": "1"}
    assert check_each_kill(rolled_back) > 4
    assert state()["aliases"] == {"champion": "1", "previous": "2"}
