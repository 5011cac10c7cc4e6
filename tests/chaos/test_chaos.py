"""The short form: a run that is killed with all its processes, and then left by its server, ends as if nothing was."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.alone import Alone
from tests.chaos.attack import Attack
from tests.chaos.outcome import differences
from tests.fixtures.databases import PREFECT


@pytest.mark.timeout(600)
def test_what_was_killed_and_lost_its_server_is_what_was_left_alone(
    tmp_path: Path, empty_database: Path, empty_prefect: Path
) -> None:
    undisturbed, attacked = Alone(tmp_path / "undisturbed"), Alone(tmp_path / "attacked")
    undisturbed.prepare({"mlflow.db": empty_database, PREFECT: empty_prefect})
    undisturbed.run()
    attacked.prepare({"mlflow.db": empty_database, PREFECT: empty_prefect})
    attacked.run(Attack("kill", "all", "step-00000020", 0.1), Attack("kill", "server", "train:", 0.0))
    ends = [(each.code, each.said[-4:]) for each in attacked.tries]
    assert [code for code, _ in ends[-2:]] == [-9, 0], ends
    assert [fault for each in attacked.tries for fault in each.faults] == []
    assert "Prefect's server went away" in "\n".join(attacked.tries[-1].said)
    assert attacked.unended == 0
    assert differences(attacked.outcome(), undisturbed.outcome()) == []
