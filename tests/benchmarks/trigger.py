"""From the button to the first training step, and where the time goes: on a warm worker, in place and as a gang.

Usage: python tests/benchmarks/trigger.py [--nodes 1] [--rounds 3]

Brings up a stack of its own, with a worker for each node, and asks for the nano preset with another seed each round, so
that its dataset is there from the second round on; the first is not counted. Times are the server's, in seconds from
the moment the button was pressed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fixtures.place import Place, folder_for_all, stack_in

MOMENTS = ("process asked for", "flow begins", "dataset found", "train begins", "ranks begin", "first step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with folder_for_all("trigger") as folder, stack_in(folder) as place:
        for number in range(options.nodes if options.nodes > 1 else 0):
            place.start_worker(f"node-{number}")
        rounds = [measure(place, options.nodes, seed) for seed in range(options.rounds + 1)][1:]
    before = 0.0
    for moment in MOMENTS:
        median = statistics.median(each[moment] for each in rounds)
        every = "  ".join(f"{each[moment]:5.1f}" for each in rounds)
        print(f"{moment:18} {median:5.1f}   +{median - before:4.1f}   {every}")
        before = median


def measure(place: Place, nodes: int, seed: int) -> dict[str, float]:
    train = {"steps": 2, "log_every": 1, "seed": seed, "nodes": nodes, "warmup_steps": 1, "batch_size": 8}
    place.since = began = datetime.now(UTC)
    wanted = {"train": train, "evaluate": {"max_tokens": 256}, "sample": {"max_new_tokens": 2}}
    run = place.press_run("retrain/on-demand", **wanted)
    place.wait_for(run, "COMPLETED", 300)

    def after(moment: str) -> float:
        return (datetime.fromisoformat(moment) - began).total_seconds()

    def logged(words: str) -> float:
        place.wait_for_words(words)
        return min(after(line["timestamp"]) for line in place.lines() if words in line["message"])

    states = place.prefect(f"flow_run_states/?flow_run_id={run}")
    subflows = {each["name"]: each for each in flows_of(place, run)}
    return {
        "process asked for": min(after(state["timestamp"]) for state in states if state["type"] == "PENDING"),
        "flow begins": min(after(state["timestamp"]) for state in states if state["type"] == "RUNNING"),
        "dataset found": after(subflows["tokenize"]["end_time"]),
        "train begins": after(subflows["train"]["start_time"]),
        "ranks begin": logged("training from the first step"),
        "first step": logged("step 1/2"),
    }


def flows_of(place: Place, run: str) -> list[dict[str, Any]]:
    """The subflows of a run, each with its flow's name."""
    names = {each["id"]: each["name"] for each in place.prefect("flows/filter", {})}
    found = place.prefect("flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}})
    return [{**each, "name": names[each["flow_id"]]} for each in found]


if __name__ == "__main__":
    main()
