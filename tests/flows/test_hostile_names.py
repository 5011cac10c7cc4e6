"""Names, prompts and texts that hold HTML and scripts are shown as they are, on every page, in a real browser."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from gptpipe import storage
from tests.fixtures.browser import CHROMIUM, Browser, browser
from tests.fixtures.environment import begin_again
from tests.fixtures.place import Place, folder_for_all, stack_in

pytestmark = [pytest.mark.stack, pytest.mark.slow]
IMAGE = "<img src=x onerror=window.hacked=1>"  # as a file may be called
EVIL = f"</script><script>window.hacked=1</script>{IMAGE}\x1b[2J[x](javascript:window.hacked=1)`|**"
MODEL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "context_length": 32}
TRAIN = {"steps": 6, "warmup_steps": 1, "batch_size": 4, "validate_every": 3, "checkpoint_every": 3}
_SECONDS = 5.0  # in which a page has drawn itself


@pytest.fixture
def place() -> Iterator[Place]:
    with folder_for_all("hostile") as folder:
        notes = folder / IMAGE
        notes.mkdir()
        for number in range(60):
            (notes / f"{number} {IMAGE}.txt").write_text(
                f"{EVIL} {number} {' '.join(str(number * j) for j in range(40))}"
            )
        with stack_in(folder, GPTPIPE_EXPERIMENT=IMAGE) as place:
            yield place


def look_at(page: Browser, name: str, url: str) -> str:
    """The text of a page that has run nothing of what it shows."""
    page.open(url)
    time.sleep(_SECONDS)
    assert page.run("() => window.hacked ?? null") is None, name
    assert page.run("() => [...document.images].filter(each => each.getAttribute('src') === 'x').length") == 0, name
    links = page.run("() => [...document.links].filter(each => each.protocol === 'javascript:').length")
    assert links == 0, name
    if folder := os.environ.get("HOSTILE_PICTURES"):
        page.picture(Path(folder) / f"{name}.png")
    return page.text()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_nothing_that_is_shown_runs(place: Place, tmp_path: Path) -> None:
    corpus = [{"url": str(place.folder / IMAGE), "name": "notes"}]
    run = place.press_run(
        "retrain/on-demand",
        data={"corpus": corpus, "validation": 0.3},
        model=MODEL,
        train=TRAIN,
        sample={"prompts": [EVIL.replace("\x1b", "")], "max_new_tokens": 8},
        promote={"model_name": IMAGE},
    )
    place.wait_for(run, "COMPLETED", 300)
    for words in (("report", "--set", f"promote.model_name={IMAGE}"), ("compare",)):
        done = place.call(*words, "--html", str(tmp_path / f"{words[0]}.html"), GPTPIPE_EXPERIMENT=IMAGE)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stderr
    prefect, mlflow = (f"http://127.0.0.1:{place.ports[name]}" for name in ("PREFECT", "MLFLOW"))
    os.environ.update(place.stack_environment())
    begin_again()
    for entry in storage.list_files("s3://gptpipe"):
        if entry.path.endswith(".html"):
            (tmp_path / f"stored-{len(list(tmp_path.iterdir()))}.html").write_bytes(storage.read_bytes(entry.url))
    client = MlflowClient(mlflow)
    experiment = client.get_experiment_by_name(IMAGE)
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id])
    own = f"{mlflow}/#/experiments/{experiment.experiment_id}"
    pages = {
        "prefect run": f"{prefect}/v2/runs/flow-run/{run}",
        "prefect run, first UI": f"{prefect}/runs/flow-run/{run}?tab=Artifacts",
        "mlflow runs": f"{own}/runs?workflowType=machine_learning",
        "mlflow run": f"{own}/runs/{tracked.info.run_id}?workflowType=machine_learning",
        "mlflow models": f"{mlflow}/#/models?workflowType=machine_learning",
    }
    artifacts = {each["key"]: each["id"] for each in place.prefect("artifacts/filter", {"limit": 100}) if each["key"]}
    assert {"retrain", "samples", "evaluation"} <= artifacts.keys()
    for key, identity in artifacts.items():
        pages |= {f"artifact {key}": f"{prefect}/v2/artifacts/artifact/{identity}"}
        pages |= {f"artifact {key}, first UI": f"{prefect}/artifacts/artifact/{identity}"}
    pages |= {f"page {file.name}": file.as_uri() for file in tmp_path.glob("*.html")}
    assert {"page report.html", "page compare.html"} < pages.keys()
    with browser(tmp_path / "browser") as page:
        texts = {name: look_at(page, name, url) for name, url in pages.items()}
    assert any("window.hacked" in text for name, text in texts.items() if name.startswith("artifact"))
    assert any("window.hacked" in text for name, text in texts.items() if name.startswith("mlflow"))
    assert any("window.hacked" in text for name, text in texts.items() if name.startswith("page"))
