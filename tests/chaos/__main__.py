"""Rounds on record: `python -m tests.chaos --rounds 50 --seed 0 --record rounds.jsonl`; `--only SEED` replays one."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from tests.chaos.rounds import Round, alone, later, stacked, stored
from tests.chaos.trouble import enter_own_network

_WORLDS = (
    "alone: the pipeline as one command; stored: the same with an object store behind a bad door; "
    "later: commands after a training; stacked: a worker on the servers of `gptpipe up`"
)


def table(rounds: Sequence[Round]) -> str:
    """Rounds by fault in Markdown, without those whose attack came too late."""
    groups = defaultdict(list)
    for each in rounds:
        if each.struck:
            groups[each.world, each.command or each.attack.fault, each.attack.victim].append(each)
    heads = ["fault", "rounds", "the same in the end", "at once", "after a retry", "seconds, median"]
    lines = [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
    for (_, fault, victim), those in sorted(groups.items()):
        well = [each for each in those if not each.faults]
        at_once = sum(len(each.ends) == 1 for each in well)
        seconds = round(median(sum(each.seconds) for each in those))
        lines.append(_line([f"{fault}, {victim}", len(those), len(well), at_once, len(well) - at_once, seconds]))
    return "\n".join(lines)


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.chaos")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; the next ones count on")
    parser.add_argument("--only", type=int, nargs="+", metavar="SEED", help="these alone; their folders are kept")
    parser.add_argument("--world", choices=("alone", "stored", "later", "stacked"), default="alone", help=_WORLDS)
    parser.add_argument("--parallel", type=int, default=1, help="so many at a time, each with servers of its own")
    parser.add_argument("--record", type=Path, help="a line of JSON for each round is added to this file")
    given = parser.parse_args()
    if given.world == "stacked":
        enter_own_network()
    keep = given.only is not None
    seeds = given.only or range(given.seed, given.seed + given.rounds)
    folder = Path(tempfile.mkdtemp(prefix="gptpipe-chaos-"))
    rounds = []
    worlds = {
        "alone": lambda: alone(seeds, folder, given.parallel, keep=keep),
        "stored": lambda: stored(seeds, folder, given.parallel, keep=keep),
        "later": lambda: later(seeds, folder, keep=keep),
        "stacked": lambda: stacked(seeds),
    }
    for done in worlds[given.world]():
        rounds.append(done)
        print(done, flush=True)
        if given.record:
            with given.record.open("a") as record:
                record.write(f"{json.dumps(done.as_dict())}\n")
    print(f"\n{table(rounds)}")
    went_wrong = any(each.faults for each in rounds)
    if went_wrong or keep:
        print(f"\ntheir files: {folder}")
    else:
        shutil.rmtree(folder)
    return int(went_wrong)


if __name__ == "__main__":
    sys.exit(main())
