"""What nothing refers to is listed and removed; what a version, a kept, a running run or a writer needs stays."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from typer.testing import CliRunner

from gptpipe import storage
from gptpipe.cli.app import app
from gptpipe.config.settings import reload_settings, settings
from gptpipe.pipeline.retention import Removal, removals, remove
from gptpipe.storage.lease import Lease
from gptpipe.tracking.client import DATASET_TAG, TRAINING_TAG, Tracking
from gptpipe.tracking.moves import MOVE_TAG, WAITS_TAG
from gptpipe.tracking.registry import SCORE_TAG
from gptpipe.tracking.sweeps import PARENT_TAG, SWEEP_TAG

DAY = 86400
IDS = {
    hashlib.md5(name.encode()).hexdigest(): name
    for name in (
        "a",
        "b",
        "c",
        "d",
        "e",
        "last",
        "of-young",
        "unfinished",
        "plain",
        "kept",
        "running",
        "registered",
        "held",
        "young",
        "of-a-sweep",
        "of-an-ended-sweep",
    )
}
ID_OF = {name: identity for identity, name in IDS.items()}
pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPTPIPE_STORAGE", str(tmp_path / "store"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # torchrun's folders of other processes are not looked at
    reload_settings()
    return tmp_path / "store"


def dataset(store: Path, name: str, *, whole: bool = True) -> str:
    folder = store / "datasets" / ID_OF[name]
    folder.mkdir(parents=True)
    (folder / "shard.parquet").write_bytes(b"x" * 1000)
    if whole:
        (folder / "manifest.json").write_text("{}")
    return str(folder)


def training(store: Path, name: str, data: str, status: str = "FINISHED", **tags: str) -> str:
    """A training's folder and its run."""
    folder = store / "trainings" / ID_OF[name]
    checkpoint = folder / "step-00000012"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"x" * 2000)
    (checkpoint / "manifest.json").write_text("{}")
    tracking = Tracking.of(settings())
    client = tracking.connect()
    given = {TRAINING_TAG: str(folder), DATASET_TAG: data, **tags}
    run = client.create_run(tracking.experiment_id(client), run_name=name, tags=given)
    if status != "RUNNING":
        client.set_terminated(run.info.run_id, status=status)
    return str(folder)


def age(store: Path, days: float) -> None:
    """Everything was written so long ago."""
    when = time.time() - days * DAY
    for path in store.rglob("*"):
        os.utime(path, (when, when))


def places(store: Path, days: float = 30) -> set[str]:
    found = set()
    for each in removals(str(store), Tracking.of(settings()), days):
        above, _, name = each.place.removeprefix(str(store) + "/").rpartition("/")
        found.add(f"{above}/{IDS.get(name, name)}")
    return found


def test_only_what_nothing_refers_to_may_go(store: Path) -> None:
    (store / "trainings" / "init" / "mine").mkdir(parents=True)  # not made by the pipeline
    data = {name: dataset(store, name) for name in ("a", "b", "c", "d", "e", "last", "of-young")}
    dataset(store, "unfinished", whole=False)
    training(store, "plain", data["a"])
    training(store, "kept", data["b"], keep="true")
    training(store, "running", data["c"], status="RUNNING")
    registered = training(store, "registered", data["d"])
    held = training(store, "held", data["e"])
    client = Tracking.of(settings()).connect()
    client.create_registered_model("gptpipe")
    client.create_model_version("gptpipe", storage.as_uri(f"{registered}/step-00000012"))
    (store / "datasets" / "latest.json").write_text(json.dumps({"id": ID_OF["last"]}))
    age(store, 40)
    training(store, "young", data["of-young"])
    with Lease(held):
        assert places(store) == {"trainings/plain", "datasets/a", "datasets/unfinished"}
    age(store, 40)
    assert places(store) == {
        "trainings/plain",
        "datasets/a",
        "datasets/unfinished",
        "trainings/held",
        "datasets/e",
        "trainings/young",
        "datasets/of-young",
    }
    assert places(store, days=50) == set()


def test_a_store_that_is_named_by_another_path_is_the_same(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative, and through a link: what a run refers to stays."""
    kept = training(store, "kept", dataset(store, "a"), keep="true")
    registered = training(store, "registered", dataset(store, "b"))
    client = Tracking.of(settings()).connect()
    client.create_registered_model("gptpipe")
    client.create_model_version("gptpipe", storage.as_uri(f"{registered}/step-00000012"))
    age(store, 40)
    (tmp_path / "link").symlink_to(store)
    monkeypatch.chdir(tmp_path)
    for name in ("store", "link", str(tmp_path / "link") + "/"):
        assert removals(name, Tracking.of(settings()), 30) == [], name
    assert Path(kept).exists()


def test_what_this_mlflow_does_not_know_and_what_others_were_scored_on_stays(store: Path) -> None:
    """Another MLflow may have registered it; a run that stays was scored on a dataset of its own."""
    scored, seen = dataset(store, "a"), dataset(store, "b")
    training(store, "kept", dataset(store, "c"), keep="1", **{"gptpipe.since": seen})
    client = Tracking.of(settings()).connect()
    (run,) = client.search_runs([Tracking.of(settings()).experiment_id(client)])
    client.log_param(run.info.run_id, "evaluate.data", scored)
    unknown = store / "trainings" / ID_OF["plain"] / "step-00000012"
    unknown.mkdir(parents=True)
    (unknown / "model.safetensors").write_bytes(b"x")
    (store / "datasets" / ID_OF["d"]).mkdir()  # somebody begins to write it
    age(store, 40)
    assert places(store) == set()


@pytest.mark.parametrize(("status", "tags"), [("RUNNING", {}), ("FINISHED", {"keep": "true"})])
def test_trainings_of_a_sweep_that_goes_on_or_is_kept_stay(store: Path, status: str, tags: dict[str, str]) -> None:
    tracking = Tracking.of(settings())
    client = tracking.connect()
    experiment = tracking.experiment_id(client)
    going_on = client.create_run(experiment, tags={SWEEP_TAG: "one", **tags}).info.run_id
    ended = client.create_run(experiment, tags={SWEEP_TAG: "other"}).info.run_id
    for run, how in ((going_on, status), (ended, "FINISHED")):
        if how != "RUNNING":
            client.set_terminated(run, status=how)
    training(store, "of-a-sweep", dataset(store, "a"), "KILLED", **{PARENT_TAG: going_on})
    gone = training(store, "of-an-ended-sweep", dataset(store, "b"), "KILLED", **{PARENT_TAG: ended})
    dataset(store, "last")
    age(store, 60)
    places = {each.place for each in removals(str(store), tracking, 30)}
    assert gone in places
    assert not [place for place in places if ID_OF["of-a-sweep"] in place or ID_OF["a"] in place]


def test_a_dry_run_lists_and_apply_removes(store: Path) -> None:
    training(store, "plain", dataset(store, "a"))
    training(store, "kept", dataset(store, "b"), keep="yes")
    age(store, 40)
    listed = CliRunner().invoke(app, ["clean"])
    assert listed.exit_code == 0, listed.output
    assert "2 things, 0.0 MB; --apply removes them" in listed.output
    assert (store / "trainings" / ID_OF["plain"]).exists()
    assert "nothing to remove" in CliRunner().invoke(app, ["clean", "--older-than", "60"]).output
    applied = CliRunner().invoke(app, ["clean", "--apply", "--json"])
    assert len(json.loads(applied.stdout)["removals"]) == 2
    assert {IDS[path.name] for path in store.glob("*/*")} == {"kept", "b"}
    assert "nothing to remove" in CliRunner().invoke(app, ["clean", "--apply"]).output


def test_a_training_that_begins_meanwhile_stays(store: Path) -> None:
    folder = training(store, "plain", dataset(store, "a"))
    age(store, 40)
    first = removals(str(store), Tracking.of(settings()), 30)[0]
    with Lease(folder):
        assert not remove(first, Tracking.of(settings()))
    assert (store / "trainings" / ID_OF["plain"] / "step-00000012" / "manifest.json").exists()
    assert remove(first, Tracking.of(settings()))
    assert not (store / "trainings" / ID_OF["plain"]).exists()


def test_a_training_that_is_registered_meanwhile_stays(store: Path) -> None:
    folder = training(store, "plain", dataset(store, "a"))
    age(store, 40)
    first = removals(str(store), Tracking.of(settings()), 30)[0]
    client = Tracking.of(settings()).connect()
    client.create_registered_model("gptpipe")
    client.create_model_version("gptpipe", f"file://{folder}/step-00000012")
    assert not remove(first, Tracking.of(settings()))
    assert (Path(folder) / "step-00000012" / "manifest.json").exists()


def test_a_removal_that_is_killed_leaves_nothing_that_looks_whole(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = dataset(store, "a")
    age(store, 40)
    (removal,) = removals(str(store), Tracking.of(settings()), 30)

    def killed(url: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove_tree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(removal, Tracking.of(settings()))
    assert not Path(place, "manifest.json").exists()
    (again,) = removals(str(store), Tracking.of(settings()), 0)
    assert again.reason == "never finished"
    assert remove(again, Tracking.of(settings()))


def test_leftovers_of_processes_that_ended_go_and_those_of_living_ones_stay(store: Path, tmp_path: Path) -> None:
    jobs = settings().home_path / "jobs"
    for name, launcher in (("dead", 2**22 + 5), ("alive", os.getpid())):
        (jobs / name).mkdir(parents=True)
        (jobs / name / "job.json").write_text(json.dumps({"launcher": launcher}))
    (tmp_path / "torchelastic_x" / "attempt").mkdir(parents=True)
    (tmp_path / "torchelastic_x" / "attempt" / "error.json").write_text("{}")
    assert places(store, days=0) == set()  # a day at least
    age(jobs, 2)
    age(tmp_path / "torchelastic_x", 2)
    assert places(store, days=0) == {str(jobs / "dead"), str(tmp_path / "torchelastic_x")}


@pytest.mark.stack
def test_uploads_that_never_ended_are_given_up_in_a_real_store(s3_storage: str) -> None:
    fs, path = storage.filesystem(f"{s3_storage}/trainings/x/model.safetensors")
    bucket, _, key = path.partition("/")
    fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    tracking = Tracking.of(settings())

    def uploads(now: Callable[[], float]) -> list[Removal]:
        return [each for each in removals(s3_storage, tracking, 1, now()) if each.kind == "upload"]

    assert uploads(time.time) == []
    (upload,) = uploads(lambda: time.time() + 2 * DAY)
    assert upload.place.endswith("trainings/x/model.safetensors")
    assert remove(upload, Tracking.of(settings()))
    assert uploads(lambda: time.time() + 2 * DAY) == []


def version(store: Path, name: str, *, days: float = 40, run_tags: dict[str, str] | None = None, **tags: str) -> str:
    """A training that the gate has registered, so long ago, and the number of its version."""
    folder = training(store, name, dataset(store, name), **(run_tags or {}))
    tracking = Tracking.of(settings())
    client = tracking.connect()
    with suppress(MlflowException):
        client.create_registered_model("gptpipe")
    (run,) = client.search_runs([tracking.experiment_id(client)], f"attributes.run_name = '{name}'")
    checkpoint = storage.as_uri(f"{folder}/step-00000012")
    made = client.create_model_version("gptpipe", checkpoint, run.info.run_id, tags={SCORE_TAG: "3.0", **tags})
    with closing(sqlite3.connect(settings().tracking_uri.removeprefix("sqlite:///"))) as database, database:
        written = int((time.time() - days * DAY) * 1000)
        database.execute("update model_versions set creation_time = ? where version = ?", (written, made.version))
    return str(made.version)


def test_versions_go_where_a_number_of_them_that_stays_is_given(store: Path) -> None:
    """Not one with an alias, one that waits, one that is tagged or whose run is, a young one, another program's."""
    champion, plain = version(store, "registered"), version(store, "plain")
    version(store, "a", **{WAITS_TAG: champion})
    version(store, "kept", keep="true")
    version(store, "b", run_tags={"keep": "yes"})
    version(store, "young", days=2)
    before = version(store, "c")
    version(store, "last")
    version(store, "d")
    tracking = Tracking.of(settings())
    client = tracking.connect()
    client.delete_model_version_tag("gptpipe", before, SCORE_TAG)
    client.set_registered_model_alias("gptpipe", "champion", champion)
    age(store, 40)
    assert places(store) == set()
    listed = CliRunner().invoke(app, ["clean", "--keep-versions", "2"])
    assert listed.exit_code == 0, listed.output
    assert f"models:/gptpipe/{plain}  (no alias, not among the newest 2)" in listed.output
    assert "3 things" in listed.output  # with its training, and the dataset of that
    for many in (8, 9, 10, 12, 100):  # 9 there are
        assert removals(str(store), tracking, 30, keep_versions=many) == [], many
    client.set_registered_model_tag("gptpipe", MOVE_TAG, "{}")
    assert removals(str(store), tracking, 30, keep_versions=2) == []
    client.delete_registered_model_tag("gptpipe", MOVE_TAG)
    (first, *_) = removals(str(store), tracking, 30, keep_versions=2)
    client.set_registered_model_alias("gptpipe", "mine", plain)
    assert not remove(first, tracking)  # it has got an alias since it was listed
    client.delete_registered_model_alias("gptpipe", "mine")
    applied = CliRunner().invoke(app, ["clean", "--keep-versions", "2", "--apply", "--json"])
    assert [each["kind"] for each in json.loads(applied.stdout)["removals"]] == ["version", "training", "dataset"]
    assert not (store / "trainings" / ID_OF["plain"]).exists()
    assert len(client.search_model_versions("name = 'gptpipe'")) == 8
    assert not remove(first, tracking)  # it is gone


def result(store: Path, name: str, *, weights: str = "", data: str = "", whole: bool = True) -> None:
    """An evaluation or samples as they are kept: what was scored, and the files beside it."""
    folder, _, name = name.partition("/")
    place = store / folder / hashlib.md5(name.encode()).hexdigest()
    place.parent.mkdir(exist_ok=True)
    place.with_suffix(".parquet").write_bytes(b"x" * 100)
    if whole:
        place.with_suffix(".json").write_text(json.dumps({"weights": weights, "data": data}))


def results(names: Iterable[str]) -> set[str]:
    """Those of these that are called by an id, by the name that this test gives them."""
    given = ("of-kept", "of-a-file", "of-elsewhere", "of-plain", "on-b", "unfinished", "young", "bad")
    known = {hashlib.md5(name.encode()).hexdigest(): name for name in given}
    parts = [name.rpartition("/") for name in names]
    return {f"{folder}/{known.get(name.split('.')[0], name)}" for folder, _, name in parts}


def test_results_go_with_the_training_or_the_dataset_that_they_are_of(store: Path) -> None:
    a, b = dataset(store, "a"), dataset(store, "b")
    kept, plain = training(store, "kept", a, keep="true"), training(store, "plain", b)
    last = dataset(store, "last")
    (store / "datasets" / "latest.json").write_text(json.dumps({"id": ID_OF["last"]}))
    result(store, "evaluations/of-kept", weights=f"{kept}/step-00000012", data=a)
    result(store, "evaluations/of-a-file", weights="/elsewhere/model", data=last)
    gone = f"trainings/{ID_OF['plain']}/step-00000012"
    result(store, "evaluations/of-elsewhere", weights=f"/elsewhere/{gone}", data=f"/elsewhere/datasets/{ID_OF['b']}")
    result(store, "evaluations/of-plain", weights=f"{plain}/step-00000012", data=a)
    result(store, "evaluations/on-b", weights=f"{kept}/step-00000012", data=b)
    result(store, "evaluations/unfinished", whole=False)
    result(store, "evaluations/bad", whole=False)
    (store / "evaluations" / f"{hashlib.md5(b'bad').hexdigest()}.json").write_text("[")
    result(store, "samples/of-kept", weights=f"{kept}/step-00000012")
    result(store, "samples/of-plain", weights=f"{plain}/step-00000012")
    overlap = f"overlap-{ID_OF['a']}.json"
    for name in (overlap, "mine.json"):
        (store / "evaluations" / name).write_text("[]")
    age(store, 40)
    result(store, "evaluations/young", weights=f"{plain}/step-00000012")
    assert results(places(store)) == {
        "trainings/plain",
        "datasets/b",
        "evaluations/of-plain",
        "evaluations/on-b",
        "evaluations/unfinished",
        f"evaluations/{overlap}",
        "evaluations/bad",
        "samples/of-plain",
    }
    assert CliRunner().invoke(app, ["clean", "--apply"]).exit_code == 0
    stays = {"evaluations/of-kept", "evaluations/of-a-file", "evaluations/of-elsewhere", "evaluations/young"}
    left = [f"{path.parent.name}/{path.name}" for path in store.glob("[es]*/*")]
    assert results(left) == stays | {"samples/of-kept", "evaluations/mine.json"}
    assert len(left) == 2 * 5 + 1
    assert places(store) == set()
