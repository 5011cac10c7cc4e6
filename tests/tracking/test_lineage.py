"""From a version to its texts and back, over a model that went on from another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gptpipe.cli.app import app
from gptpipe.config import DataConfig, PipelineConfig, PromoteConfig
from gptpipe.config.settings import reload_settings
from gptpipe.corpus.build import tokenize
from gptpipe.dataset.dataset import Dataset, open_dataset
from gptpipe.errors import UserError
from gptpipe.tracking.follow import INIT_TAG, SINCE_TAG
from gptpipe.tracking.lineage import Lineage, lineage
from gptpipe.tracking.registry import register
from gptpipe.tracking.results import log_results
from gptpipe.weights.adapt import import_weights
from tests.fixtures.tracked import follow, result_of, tracking, write_model

FIRST, SECOND = "1" * 32, "2" * 32


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A home with two trainings, the second on more text and from the first's checkpoint; each is a version."""
    home = tmp_path_factory.mktemp("lineage")
    shutil.copy(empty_database, home / "mlflow.db")
    store, texts = home / "store", home / "texts"
    with pytest.MonkeyPatch.context() as patch:
        use(home, patch)
        texts.mkdir()
        for name in ("a", "b"):
            (texts / f"{name}.txt").write_text(f"the text of {name}, over and over\n" * 20)
        first = dataset(texts, store)
        trained(store, FIRST, first, {})
        copy = import_weights(str(store / "trainings" / FIRST / "step-00000012"), str(store / "weights" / "copy")).url
        (texts / "c.txt").write_text("what came later, and was not there before\n" * 20)
        second = dataset(texts, store)
        trained(store, SECOND, second, {INIT_TAG: copy, SINCE_TAG: first.url})
    return home


@pytest.fixture
def store(built: Path, clean_settings: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    use(built, monkeypatch)
    return built / "store"


def use(home: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("GPTPIPE_HOME", str(home))
    patch.setenv("GPTPIPE_STORAGE", str(home / "store"))
    reload_settings()


def dataset(texts: Path, store: Path) -> Dataset:
    config = DataConfig(corpus=[str(texts)], validation=0.3, shard_megabytes=1)
    return open_dataset(tokenize(config, str(store / "datasets")).dataset)


def trained(store: Path, training: str, data: Dataset, tags: dict[str, str]) -> None:
    folder = store / "trainings" / training
    folder.mkdir(parents=True)
    write_model(folder.parent / f"model-{training}", data, "better" if tags else "uniform")
    import_weights(str(folder.parent / f"model-{training}"), str(folder / "made"))
    (next((folder / "made").iterdir())).rename(folder / "step-00000012")
    config = PipelineConfig(promote=PromoteConfig(max_copied=0))
    link = follow(data, str(folder), [{"step": 12, "tokens": 120, "train/loss": 4.0}], config=config, tags=tags)
    result, evaluation, samples = result_of(data, str(folder), 4.0)
    log_results(link, result, evaluation, samples)
    register(config, link, result, evaluation, samples[-1], out=str(store / "evaluations"))


def names(traced: Lineage, kind: str) -> set[str]:
    return {node.name for node in traced.nodes.values() if node.kind == kind}


def test_a_version_leads_to_every_text_and_to_the_model_that_it_went_on_from(store: Path) -> None:
    traced = lineage("models:/gptpipe/2", str(store), tracking())
    assert names(traced, "source") == {"corpus:a.txt", "corpus:b.txt", "corpus:c.txt"}
    assert len(names(traced, "dataset")) == 2
    assert len(names(traced, "run")) == 2
    assert {f"{FIRST}/step-00000012", "copy/step-00000000", f"{SECOND}/step-00000012"} >= names(traced, "checkpoint")
    assert len(names(traced, "checkpoint")) == 3
    assert names(traced, "version") == {"models:/gptpipe/2"}


def test_an_alias_of_the_model_leads_to_its_version(store: Path) -> None:
    for alias, number in (("champion", "1"), ("challenger", "2")):
        assert lineage(alias, str(store), tracking()).subjects == [f"version:gptpipe/{number}"]


def test_of_a_folder_of_texts_it_says_that_a_file_is_wanted(store: Path) -> None:
    with pytest.raises(UserError, match="a folder, and no checkpoint or dataset — give a file of text in it"):
        lineage(str(store.parent / "texts"), str(store), tracking())


def test_the_first_version_leads_on_to_the_second(store: Path) -> None:
    traced = lineage("models:/gptpipe/1", str(store), tracking())
    assert names(traced, "version") == {"models:/gptpipe/1", "models:/gptpipe/2"}
    assert "corpus:c.txt" not in names(traced, "source")  # only what it was made from itself


def test_a_text_leads_to_the_versions_that_have_seen_it_wherever_it_lies(store: Path, tmp_path: Path) -> None:
    versions = {"models:/gptpipe/1", "models:/gptpipe/2"}
    moved = shutil.copy(store.parent / "texts" / "a.txt", tmp_path / "elsewhere.txt")
    assert names(lineage(str(moved), str(store), tracking()), "version") == versions
    assert names(lineage("corpus:a.txt", str(store), tracking()), "version") == versions
    later = lineage(str(store.parent / "texts" / "c.txt"), str(store), tracking())
    assert names(later, "version") == {"models:/gptpipe/2"}
    assert names(later, "source") == {"corpus:c.txt"}


@pytest.mark.parametrize("name", [FIRST[:8], "{store}/trainings/" + FIRST])
def test_a_training_is_known_by_its_id_and_its_place(store: Path, name: str) -> None:
    traced = lineage(name.format(store=store), str(store), tracking())
    assert [traced.nodes[key].kind for key in traced.subjects] == ["run"]
    assert names(traced, "version") == {"models:/gptpipe/1", "models:/gptpipe/2"}


def test_datasets_and_checkpoints_are_known_by_their_place(store: Path) -> None:
    place = store / "trainings" / SECOND / "step-00000012"
    assert lineage(str(place), str(store), tracking()).subjects == [f"checkpoint:{SECOND}/step-00000012"]
    (first,) = names(lineage("corpus:a.txt", str(store), tracking()), "dataset") - names(
        lineage("corpus:c.txt", str(store), tracking()), "dataset"
    )
    assert lineage(first, str(store), tracking()).subjects == [f"dataset:{first}"]


def test_a_dataset_that_was_removed_is_named_and_the_rest_is_told(store: Path) -> None:
    (store / "datasets").rename(store / "away")
    try:
        traced = lineage("gptpipe", str(store), tracking())
    finally:
        (store / "away").rename(store / "datasets")
    assert traced.subjects == ["version:gptpipe/2"]
    assert all(node.facts == {"removed": "yes"} for node in traced.nodes.values() if node.kind == "dataset")
    assert names(traced, "source") == set()


def test_a_damaged_dataset_is_told_and_hides_nothing_else(store: Path) -> None:
    (first,) = names(lineage("corpus:a.txt", str(store), tracking()), "dataset") - names(
        lineage("corpus:c.txt", str(store), tracking()), "dataset"
    )
    manifest = store / "datasets" / first / "manifest.json"
    content = manifest.read_bytes()
    manifest.write_bytes(b"{")
    try:
        traced = lineage("models:/gptpipe/2", str(store), tracking())
    finally:
        manifest.write_bytes(content)
    facts = {node.name: node.facts for node in traced.nodes.values() if node.kind == "dataset"}
    assert "not JSON" in facts[first]["unreadable"]
    assert len(facts) == 2
    assert names(traced, "source") == {"corpus:a.txt", "corpus:b.txt", "corpus:c.txt"}  # of the other one


def test_a_file_that_nothing_was_made_from_and_a_name_of_nothing_are_refused(store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("never read")
    for name in (str(other), "no-such-thing", "models:/gptpipe/9"):
        with pytest.raises(UserError) as refused:
            lineage(name, str(store), tracking())
        assert name in str(refused.value)


def test_the_command_prints_trees_json_and_a_picture(store: Path, tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["lineage", "models:/gptpipe/2", "--picture", str(tmp_path / "lineage.png")])
    assert printed.exit_code == 0, printed.output
    lines = printed.output.splitlines()
    assert lines[0].startswith("version models:/gptpipe/2 (alias challenger")
    assert lines.index("made from") < lines.index("went into")
    assert any(line.startswith(f"  checkpoint {SECOND}/step-00000012") for line in lines)
    assert lines[lines.index("went into") + 1] == "  nothing that is known here"
    assert (tmp_path / "lineage.png").read_bytes().startswith(b"\x89PNG")
    answer = json.loads(CliRunner().invoke(app, ["lineage", "models:/gptpipe/1", "--json"]).stdout)
    assert answer["subjects"] == ["version:gptpipe/1"]
    assert all(key in answer["nodes"] for edge in answer["edges"] for key in edge)
