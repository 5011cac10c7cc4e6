"""Long and large, on the servers of `gptpipe up`: what must stay flat while it goes on, and what it does to them.

Usage: python -m tests.chaos.soak training [--steps 100000] [--every 100]
       python -m tests.chaos.soak nights [--nights 500] [--clean-every 10]
       python -m tests.chaos.soak files [--small 10000] [--gigabytes 4]
       python -m tests.chaos.soak runs [--runs 1000]

`training`: one that logs each step and saves often. `nights`: retrainings of a text that grows, and `clean`. `files`:
many small files and one large, without servers. `runs`: so many flow runs in Prefect's history.

Printed at the end: the figures at a third and at the end of the time, and which of them grew by more than is allowed.
Exits with 1 if one did.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.chaos.alone import GPTPIPE, SETTINGS, write_corpus
from tests.fixtures.browser import CHROMIUM, browser
from tests.fixtures.place import Place, folder_for_all, stack_in

PAUSE = 5.0  # seconds between two looks
# A figure may grow by this share, and by so much more, from the middle third of the time to the last.
GROWTH = 0.10
SLACK = {"MB": 64.0, "descriptors": 16, "threads": 4, "temporary files": 8}
_APART = ("stack", "cache", "jobs")  # in a home: servers, what is as large as it may be, what `clean` leaves for a day
ROLES = {
    "prefect server": "prefect_server",
    "mlflow server": "mlflow",
    "object store": "weed",
    "database": "postgres",
    "worker": "flows.machines.worker",
    "flow": "prefect.engine",
    "rank": "gptpipe.train",
}


@dataclass
class Watch:
    """Looks at all processes of a place, its databases and temporary files while something goes on.

    Attributes:
        looks: figures by name, one dictionary for each look.
    """

    place: Place
    looks: list[dict[str, float]] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(PAUSE):
            self.looks.append(dict(self.figures()))

    def figures(self) -> Iterator[tuple[str, float]]:
        sums: dict[str, float] = {}
        for process in self.place.processes().values():
            with suppress(psutil.Error):
                words = " ".join(process.cmdline())
                role = next((role for role, word in ROLES.items() if word in words), "others")
                for name, value in (
                    ("MB", process.memory_info().rss / 1e6),
                    ("descriptors", process.num_fds()),
                    ("threads", process.num_threads()),
                ):
                    sums[f"{role}, {name}"] = sums.get(f"{role}, {name}", 0.0) + value
        yield from sums.items()
        yield "temporary files", sum(1 for path in Path("/tmp").iterdir() if "gptpipe" in path.name)
        home = self.place.folder / ".gptpipe"
        others = (folder for folder in home.iterdir() if folder.name not in _APART)
        yield "home's files", sum(1 for folder in others for _ in folder.rglob("*"))
        for name in ("postgres", "seaweedfs"):
            folder = home / "stack" / name
            yield f"{name} on disk, MB", _size(folder) / 1e6

    def report(self, flat: Callable[[str], bool]) -> list[str]:
        """Print each figure in the middle and the last third; those that grew and were to be flat."""
        third = max(1, len(self.looks) // 3)
        middle, last = self.looks[third : 2 * third] or self.looks[:1], self.looks[-third:]
        grew = []
        for name in sorted({name for look in self.looks for name in look}):
            before, after = (statistics.median(look.get(name, 0.0) for look in part) for part in (middle, last))
            slack = next((slack for kind, slack in SLACK.items() if name.endswith(kind)), 0.0)
            is_bad = flat(name) and after > before * (1 + GROWTH) + slack
            print(f"{name:32} {before:12,.0f} {after:12,.0f}{'   grew' if is_bad else ''}")
            grew += [name] if is_bad else []
        return grew


def _stored(place: Place) -> dict[str, int]:
    """Bytes in the stack's object store, by the first folder of their names."""
    environment, client = place.stack_environment(), place.store()
    bucket, sizes = environment["GPTPIPE_STORAGE"].removeprefix("s3://").partition("/")[0], Counter[str]()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for each in page.get("Contents", ()):
            sizes[each["Key"].partition("/")[0]] += each["Size"]
    return sizes


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total


def training(place: Place, steps: int, every: int) -> list[str]:
    """One training of so many logged steps, saved every so many; what grew."""
    watch = Watch(place)
    with watch:
        _retrain(place, {"train.steps": steps, "train.checkpoint_every": every, "train.validate_every": every}, 10_000)
    # what is logged is kept: databases grow with it
    return watch.report(lambda name: not name.endswith("on disk, MB"))


def nights(place: Place, count: int, every: int) -> list[str]:
    """So many retrainings in one process, each of a text that has grown by a file, and `clean`; what grew.

    MLflow keeps what a night has shown, its curves and pages, and its share of the store is told beside ours.
    """
    watch, sizes = Watch(place), []
    environment = place.environment(**place.stack_environment(), PYTHONPATH=str(Path(__file__).parents[2]))
    words = [sys.executable, "-m", "tests.chaos.nights", str(count), str(every)]
    with watch:
        nights = subprocess.Popen(words, cwd=place.folder, env=environment, stdout=subprocess.PIPE, text=True)
        for line in nights.stdout or ():
            sizes.append(_stored(place))
            bytes_by_part = ", ".join(f"{part} {size / 1e6:,.1f} MB" for part, size in sorted(sizes[-1].items()))
            print(f"{line.strip()}; in the store: {bytes_by_part}", flush=True)
    grew = watch.report(lambda name: not name.endswith("on disk, MB"))
    if nights.wait():
        return [*grew, "a night has failed"]
    third = max(1, len(sizes) // 3)
    middle, last = (
        max(sum(size for name, size in each.items() if name != "mlflow") for each in part)
        for part in (sizes[third : 2 * third] or sizes, sizes[-third:])
    )
    return grew + (["the store without MLflow's share"] if last > middle * (1 + GROWTH) else [])


def runs(place: Place, count: int) -> list[str]:
    """So many flow runs in Prefect's history; seconds until what its UI asks for is answered, and until it is shown."""
    made = place.deployments()["retrain/on-demand"]
    for number in range(count):
        body = {
            "name": f"night-{number + 1}",
            "flow_id": made["flow_id"],
            "deployment_id": made["id"],
            "state": {"type": "COMPLETED", "name": "Completed"},
        }
        place.prefect("flow_runs/", body)
    slow = _pages(place, count) if CHROMIUM else []
    for path in ("ui/flow_runs/history", "flow_runs/paginate", "flow_runs/count"):
        body = {"sort": "START_TIME_DESC", "limit": 200} if path != "flow_runs/count" else {}
        began = time.monotonic()
        place.prefect(path, body)
        seconds = time.monotonic() - began
        print(f"{path}: {seconds:.2f} s with {count} runs", flush=True)
        slow += [path] if seconds > 2 else []
    return slow


def _pages(place: Place, count: int) -> list[str]:
    """The pages of Prefect's UI that take more than five seconds."""
    slow = []
    home = f"http://{place.host}:{place.ports['PREFECT']}"
    pages = {"dashboard": f"{count}", "runs": f"night-{count}", "deployments": "on-demand"}
    with browser(place.folder / "chromium") as page:
        for path, words in pages.items():
            seconds = []
            for _ in range(3):  # the first time it fetches its own code, too
                page.open("about:blank")
                began = time.monotonic()
                page.open(f"{home}/{path}")
                page.wait_for(words)
                seconds.append(time.monotonic() - began)
            page.picture(place.folder / f"{path}.png")
            print(f"{path}: shown in {', '.join(f'{each:.1f}' for each in seconds)} s with {count} runs", flush=True)
            slow += [path] if min(seconds) > 5 else []
    return slow


def _retrain(place: Place, changes: dict[str, Any], seconds: float) -> None:
    sections: dict[str, Any] = {}
    for key, value in {**SETTINGS, **changes}.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = yaml.safe_load(value) if isinstance(value, str) else value
    sections["data"]["corpus"] = [{"url": str(place.folder / "corpus")}]
    place.wait_for(place.press_run("retrain/on-demand", **sections), "COMPLETED", seconds)


def files(folder: Path, small: int, gigabytes: float) -> list[str]:
    """Tokenize many small files, and one large one; what took more memory than a tenth of it and two gigabytes."""
    many, one = folder / "many", folder / "one"
    many.mkdir()
    one.mkdir()
    for number in range(small):
        place = many / f"{number % 100:02}"
        place.mkdir(exist_ok=True)
        (place / f"{number}.py").write_text(f"def f{number}(x):\n    return x * {number}\n" * 5)
    source = b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("*.py")))
    with (one / "large.txt").open("wb") as file:
        while file.tell() < gigabytes * 1e9:
            file.write(b"%d " % file.tell() + source)
    bad = []
    for corpus in (many, one):
        began, peak = time.monotonic(), 0
        words = [GPTPIPE, "tokenize", "--corpus", str(corpus), "--out", f"{corpus}-data"]
        process = subprocess.Popen(words, cwd=folder, env={**os.environ, "GPTPIPE_HOME": str(folder / "home")})
        while process.poll() is None:
            with suppress(psutil.Error):
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                peak = max(peak, sum(each.memory_info().rss for each in family))
            time.sleep(0.5)
        print(f"{corpus.name}: {time.monotonic() - began:.0f} s, {peak / 1e6:,.0f} MB at most", flush=True)
        bad += [corpus.name] if process.returncode or peak > 2e9 + gigabytes * 1e8 else []
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("training", "nights", "files", "runs"))
    for name, default in (
        ("steps", 100_000),
        ("every", 100),
        ("nights", 500),
        ("clean-every", 10),
        ("small", 10_000),
        ("runs", 1000),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    given = parser.parse_args()
    began = time.monotonic()
    with folder_for_all("soak") as folder:
        if given.what == "files":
            grew = files(folder, given.small, given.gigabytes)
        else:
            with stack_in(folder) as place:
                write_corpus(folder / "corpus")
                works: dict[str, Callable[[], list[str]]] = {
                    "training": lambda: training(place, given.steps, given.every),
                    "nights": lambda: nights(place, given.nights, given.clean_every),
                    "runs": lambda: runs(place, given.runs),
                }
                grew = works[given.what]()
    print(f"{time.monotonic() - began:,.0f} s; {'grew too much: ' + ', '.join(grew) if grew else 'nothing grew'}")
    return bool(grew)


if __name__ == "__main__":
    sys.exit(main())
