"""Rounds on record: `python -m tests.chaos --rounds 50 --seed 0 --record rounds.jsonl`; `--only SEED` replays one."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from tests.chaos.alone import PREFECT, Alone, marks_of
from tests.chaos.attack import Attack
from tests.chaos.outcome import differences, outcome, unended_flow_runs


def reference(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What an undisturbed run leaves behind, and the marks of its log."""
    run = Alone(folder / "reference")
    run.prepare()
    run.run()
    assert run.tries[-1].code == 0, run.tries[-1].said
    return outcome(run), ["", *marks_of("\n".join(run.tries[-1].said))]


def one_round(seed: int, folder: Path, marks: list[str], undisturbed: dict[str, Any], keep: bool) -> dict[str, Any]:
    """Attack a run, and say what came of it."""
    attack = Attack.drawn(seed, marks)
    run = Alone(folder / f"round-{seed}")
    run.prepare({PREFECT: folder / "reference" / "home" / PREFECT})
    try:
        run.run(attack)
        home = run.folder / "kept" if (run.folder / "kept").exists() else run.home
        faults = [fault for each in run.tries for fault in each.faults]
        error = run.tries[-1].answer.get("error", {})
        named = {str(place) for file in run.flipped for place in (file, file.parent)}
        is_named = any(place in error.get("where", "") for place in named)
        if run.tries[-1].code and not is_named:
            faults.append(f"it did not end well: {' / '.join(run.tries[-1].said[-2:])}")
        elif not run.tries[-1].code:
            faults += differences(outcome(run, home), undisturbed)
        unended = unended_flow_runs(home)
    finally:
        run.end()
    if not faults and not keep:
        shutil.rmtree(run.folder)
    return {
        "seed": seed,
        "attack": asdict(attack),
        "struck": run.strikes > 0,
        "codes": [each.code for each in run.tries],
        "seconds": [round(each.seconds, 1) for each in run.tries],
        "unended": unended,
        "flipped": [str(file.relative_to(run.home)) for file in run.flipped],
        "error": error,
        "faults": faults,
    }


def table(rounds: list[dict[str, Any]]) -> str:
    """Rounds by fault in Markdown, without those whose attack came too late."""
    groups = defaultdict(list)
    for each in rounds:
        if not each["struck"]:
            continue
        groups[each["attack"]["fault"], each["attack"]["victim"]].append(each)
    heads = ["fault", "rounds", "the same in the end", "at once", "after a retry", "seconds, median"]
    lines = [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
    for (fault, victim), those in sorted(groups.items()):
        well = [each for each in those if not each["faults"]]
        at_once = sum(len(each["codes"]) == 1 for each in well)
        seconds = round(median(sum(each["seconds"]) for each in those))
        lines.append(_line([f"{fault}, {victim}", len(those), len(well), at_once, len(well) - at_once, seconds]))
    return "\n".join(lines)


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.chaos")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; the next ones count on")
    parser.add_argument("--only", type=int, help="this seed alone; its folder is kept")
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--record", type=Path, help="a line of JSON for each round is added to this file")
    given = parser.parse_args()
    seeds = [given.only] if given.only is not None else range(given.seed, given.seed + given.rounds)
    folder = Path(tempfile.mkdtemp(prefix="gptpipe-chaos-"))
    undisturbed, marks = reference(folder)
    work = partial(one_round, folder=folder, marks=marks, undisturbed=undisturbed, keep=given.only is not None)
    rounds = []
    with ThreadPoolExecutor(given.parallel) as pool:
        for future in as_completed([pool.submit(work, seed) for seed in seeds]):
            done = future.result()
            rounds.append(done)
            attack = Attack(**done["attack"])
            verdict = "; ".join(done["faults"]) or ("the same" if done["struck"] else "came too late")
            attack_on = f"{attack} {' '.join(done['flipped'])}".strip()
            print(f"{done['seed']}: {attack_on}: exit {done['codes']}, {done['seconds']} s: {verdict}", flush=True)
            if given.record:
                with given.record.open("a") as record:
                    record.write(f"{json.dumps(done)}\n")
    print(f"\n{table(rounds)}")
    if any(each["faults"] for each in rounds):
        print(f"\nwhat went wrong lies in {folder}")
        return 1
    if given.only is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
