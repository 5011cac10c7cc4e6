"""A training done again from its run: the same bits, and where it is not so, from which step and to which digit."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from gptpipe import storage
from gptpipe.config import Corpus, DataConfig, load_config
from gptpipe.config.settings import settings
from gptpipe.corpus.build import tokenize
from gptpipe.dataset.cache import TokenCache
from gptpipe.errors import UserError
from gptpipe.pipeline.reproduce import Reproduction, reproduce
from gptpipe.tracking.client import Tracking
from gptpipe.tracking.follow import CONFIG_FILE
from gptpipe.tracking.training import train_and_track

TINY = ["model.n_layer=1", "model.n_embd=32", "model.n_head=2", "model.context_length=32", "train.steps=12"]
TINY += ["train.batch_size=4", "train.validate_every=4", "train.checkpoint_every=5", "train.log_every=1"]
TINY += ["train.precision=float32"]
pytestmark = pytest.mark.usefixtures("database")


def again(name: str) -> Reproduction:
    return reproduce(name, Tracking.of(settings()), str(storage.reproductions_home()), TokenCache())


def test_a_training_comes_out_the_same_or_it_is_said_where_not(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"text {number} of many, all of them short\n" * 9)
    dataset = tokenize(DataConfig(corpus=[Corpus(url=str(folder))]), str(tmp_path / "data")).dataset
    config, tracking = load_config(overrides=TINY), Tracking.of(settings())
    result, link = train_and_track(config, tracking, data=dataset, out=str(tmp_path / "trainings"))
    assert link is not None

    same = again(link.run_id[:10])
    assert same.sentence == f"all {same.losses} losses are the same to the last bit, and so are the weights"
    assert same.losses == 12 + 3
    assert (same.same_weights, same.changed, same.first_difference) == (True, [], None)
    assert same.checkpoint.startswith(str(settings().home_path / "reproductions"))

    client = tracking.connect()
    loss = next(point.value for point in client.get_metric_history(link.run_id, "train/loss") if point.step == 7)
    client.log_metric(link.run_id, "train/loss", loss * 1.0000002, step=7)
    shutil.rmtree(result.training)
    other = again(link.run_id)
    assert (other.first_difference, other.digits, other.same_weights) == (7, 6, None)
    assert other.sentence == "the losses differ from step 7 on: all 15 losses agree to 6 digits"

    kept = Path(client.download_artifacts(link.run_id, CONFIG_FILE, str(tmp_path))).read_text()
    for damaged, said in (("learning_rate: 0.005", "is not that of training"), ("learning_rate: [", "cannot be read")):
        changed = re.sub(r"learning_rate: \S+", damaged, kept, count=1)
        assert changed != kept
        client.log_text(link.run_id, changed, CONFIG_FILE)
        with pytest.raises(UserError, match=said) as refused:
            again(link.run_id)
        assert refused.value.where == f"reproduce/config.yaml of run {link.run_id}"
        assert "\n" not in str(refused.value)
    client.log_text(link.run_id, kept, CONFIG_FILE)

    shutil.rmtree(Path(dataset))
    with pytest.raises(UserError, match="nothing there"):
        again(link.run_id)


def test_a_run_that_does_not_say_how_it_was_made_is_refused() -> None:
    tracking = Tracking.of(settings())
    client = tracking.connect()
    run = client.create_run(tracking.experiment_id(client), run_name="by hand")
    with pytest.raises(UserError, match="does not say how it was trained"):
        again("by hand")
    client.set_terminated(run.info.run_id)
