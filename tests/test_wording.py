"""What others wrote, in files' names or in a model's samples, does nothing on a terminal."""

from __future__ import annotations

import pytest

from gptpipe.config.settings import Settings
from gptpipe.errors import UserError
from gptpipe.wording import fenced, holds_secret, visible, without_password


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("def f(x):\n\treturn x — ‘ü’ 日本 🙂", "def f(x):\n\treturn x — ‘ü’ 日本 🙂"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\x9b31mb", "a\\x9b31mb"),
        ("a\x07\x08\r\x00\x7f", "a\\x07\\x08\\r\\x00\\x7f"),
        ("exe.\u202etxt", "exe.\\u202etxt"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # a part of Persian's spelling
        ("a\u2028b", "a\\u2028b"),
        ("a\udc9bb", "a\udc9bb"),  # a byte of a file's name, which the terminal's encoding sees to
    ],
)
def test_control_characters_are_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:se:cr%2Fet@host:5432/mlflow", "postgresql+psycopg://me:***@host:5432/mlflow"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("http://10.0.0.1:5000/a@b", "http://10.0.0.1:5000/a@b"),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
    ],
)
def test_a_password_in_an_address_is_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_an_error_is_one_line_whatever_a_file_is_called() -> None:
    error = UserError("not UTF-8", where="a\nerror: all is\x1b[8m well\r.txt", hint="convert it")
    assert str(error) == "a\\nerror: all is\\x1b[8m well\\r.txt: not UTF-8 — convert it"
    assert error.as_dict()["where"] == "a\nerror: all is\x1b[8m well\r.txt"


def test_nothing_leaves_a_fence() -> None:
    text = "a\n````\n![x](https://evil/x.png)\n"
    shown = fenced(text)
    assert shown.startswith("`````\n")
    assert shown.endswith("\n`````")
    assert fenced("plain") == "```\nplain\n```"


@pytest.mark.parametrize(
    ("url", "has_one"),
    [
        ("https://me:word@host/x", True),
        ("s3://key:secret@bucket/x", True),
        ("https://host/x?a=1&X-Amz-Signature=00ff", True),
        ("https://host/x?sig=00", True),
        ("https://host/x?design=1", False),
        ("s3://bucket/a:b@c", False),
        ("hf:owner/name@main", False),
        ("C:/texts", False),
    ],
)
def test_addresses_that_hold_a_secret_are_told(url: str, has_one: bool) -> None:
    assert holds_secret(url) is has_one


def test_no_password_stands_in_an_error_or_in_printed_settings() -> None:
    error = UserError(
        "not found at https://me:word@host/x", where="https://me:word@host/x", hint="see https://me:word@host"
    )
    assert "word" not in f"{error} {error!r} {error.as_dict()}"
    settings = Settings(sweeps_uri="postgresql://me:word@host/sweeps", mlflow_uri="postgresql://me:word@host/mlflow")
    assert "word" not in f"{settings} {settings!r}"
    assert settings.sweeps_uri == "postgresql://me:word@host/sweeps"
