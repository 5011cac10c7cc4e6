"""What is asked of an object store: each object is opened once by whoever needs it, a model only to be computed."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.corpora import some_text, write
from tests.fixtures.requests import Requests, counting
from tests.fixtures.s3 import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.stack]
GPTPIPE = str(Path(sys.executable).with_name("gptpipe"))
RANKS = 2
TINY = {
    "model.n_layer": 1,
    "model.n_embd": 16,
    "model.n_head": 2,
    "model.context_length": 32,
    "train.steps": 4,
    "train.batch_size": 4,
    "train.warmup_steps": 1,
    "train.validate_every": 2,
    "train.checkpoint_every": 2,
    "train.precision": "float32",
    "train.threads": 1,
    "train.nproc": RANKS,
}


@pytest.fixture
def door(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Requests]:
    with counting(s3.endpoint) as requests:
        monkeypatch.setenv("GPTPIPE_S3_ENDPOINT", requests.url)
        monkeypatch.setenv("GPTPIPE_S3_ACCESS_KEY", s3.access_key)
        monkeypatch.setenv("GPTPIPE_S3_SECRET_KEY", s3.secret_key)
        yield requests


def gptpipe(door: Requests, *words: str) -> dict[str, Any]:
    """A command's answer; the door has counted its requests alone."""
    door.clear()
    done = subprocess.run([GPTPIPE, *words, "--json"], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_objects_are_opened_once_and_a_model_only_to_be_computed(door: Requests, s3: S3Server, tmp_path: Path) -> None:
    out = f"s3://{s3.bucket}/{secrets.token_hex(8)}"
    corpus = write(tmp_path / "corpus", {f"{i}.txt": some_text(i, 2000) for i in range(30)})
    data = gptpipe(door, "tokenize", "--corpus", str(corpus), "--out", f"{out}/data")["dataset"]
    tiny = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    first = gptpipe(door, "train", "--data", data, "--out", f"{out}/first", *tiny)["checkpoint"]

    tuning = ["train", "--data", data, "--out", f"{out}/second", "--init", first, *tiny]
    second = gptpipe(door, *tuning)["checkpoint"]
    # by the import, and by each rank
    assert door.of("GET", "/model.safetensors") == 1 + RANKS
    assert gptpipe(door, *tuning)["already_done"]
    assert door.of("GET", "/model.safetensors") == door.of("HEAD", "/model.safetensors") == 0
    assert sum(door.seen.values()) <= 24  # 47 when each part opened for itself what another had opened

    gptpipe(door, "evaluate", "--weights", second, "--against", first, "--data", data)
    models = {path: n for (verb, path), n in door.seen.items() if verb == "GET" and path.endswith("/model.safetensors")}
    assert sorted(models.values()) == [1, 1]
    states = {path: n for (verb, path), n in door.seen.items() if verb == "GET" and path.endswith("/config.json")}
    assert sorted(states.values()) == [1, 1]
