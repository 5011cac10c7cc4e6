"""What Prefect's workers run: every deployed flow, in a process that is ready for it."""

from flows import begin

begin()

from flows.evaluate import evaluate  # noqa: E402
from flows.retrain import retrain  # noqa: E402
from flows.train_node import train_node  # noqa: E402
from flows.watch_corpora import watch_corpora  # noqa: E402

__all__ = ["evaluate", "retrain", "train_node", "watch_corpora"]
