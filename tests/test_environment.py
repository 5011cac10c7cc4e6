"""What one test sets in the environment reaches no other, nor a fixture that lives for a module."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="module")
def seen_by_a_module() -> str | None:
    return os.environ.get("PREFECT_LEFT_BEHIND")


def test_a_command_leaves_a_variable_behind() -> None:
    os.environ["PREFECT_LEFT_BEHIND"] = "1"


def test_the_next_test_has_none_of_it(seen_by_a_module: str | None) -> None:
    assert (seen_by_a_module, os.environ.get("PREFECT_LEFT_BEHIND")) == (None, None)
