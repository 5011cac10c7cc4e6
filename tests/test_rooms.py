"""The house: a package imports only from lower floors, and no file grows out of sight."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (
    ("wording", "version", "extras", "cores", "processes", "startup"),
    ("errors",),
    ("config", "progress"),
    ("storage", "model", "guard"),
    ("tokenizer",),
    ("dataset", "weights"),
    ("corpus", "launch", "generation"),
    ("train", "evaluation", "node", "sweep"),
    ("tracking", "export", "harness"),
    ("services", "pipeline"),
    ("flows",),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS, 1) for room in rooms}
FILES = sorted(path for top in ("gptpipe", "flows") for path in (ROOT / top).rglob("*.py"))
MOST_LINES = 400


ENTRIES = (
    "gptpipe/cli/",
    "flows/",
    "gptpipe/node.py",
    "gptpipe/config/settings.py",
    "gptpipe/services/prefect_server.py",
    "gptpipe/tracking/server.py",
)


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module by its path: a package or a file directly in `gptpipe`; all of `flows` is one."""
    return parts[0] if parts[0] != "gptpipe" or len(parts) == 1 else parts[1].removesuffix(".py")


def modules_of(path: Path, modules: set[str]) -> Iterator[str]:
    """The modules that a file imports, or imports from."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in modules else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a file and the rooms that they import from."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = node.module == "gptpipe"
            names = [f"{node.module}.{alias.name}" if whole else node.module for alias in node.names]
        for name in names:
            if name.split(".")[0] in ("gptpipe", "flows"):
                yield node.lineno, room_of(tuple(name.split(".")))


def test_a_package_imports_only_from_lower_floors() -> None:
    upward = []
    for path in FILES:
        room = room_of(path.relative_to(ROOT).parts)
        if room == "__init__":
            continue  # the package's face hands names on when they are first used
        assert room in FLOOR, f"{room} stands on no floor: name it in this test"
        upward += [
            f"{path.relative_to(ROOT)}:{line} imports {other}, floor {FLOOR.get(other)}; {room} is on {FLOOR[room]}"
            for line, other in imports(path)
            if other != room and FLOOR.get(other, 99) >= FLOOR[room]
        ]
    assert not upward, "\n".join(upward)


def test_the_map_of_the_readme_has_these_floors() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", (ROOT / "gptpipe" / "README.md").read_text("utf-8"), re.MULTILINE)
    told = {int(floor): set(re.findall(r"`(\w+)`", rooms)) for floor, rooms in rows}
    assert told == {floor: set(rooms) for floor, rooms in enumerate(FLOORS, 1)}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Within a package too."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    del files["gptpipe"]  # the package's face hands names on when they are first used
    graph = {name: set(modules_of(path, set(files))) & set(files) - {name} for name, path in files.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(" → ".join(error.args[1])) from None


def test_no_file_is_too_long_to_read() -> None:
    """One of that length asks to be two."""
    lines = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}


def test_every_package_says_what_it_is_for() -> None:
    packages = {path.parent for path in FILES if path.parent != ROOT / "gptpipe"}
    assert not [str(each) for each in packages if not ast.get_docstring(ast.parse((each / "__init__.py").read_text()))]


def test_only_entry_points_read_the_settings() -> None:
    """Everything else is given what it needs, so that what a function does is seen where it is called."""
    asked = []
    for path in FILES:
        place = path.relative_to(ROOT).as_posix()
        names = [node.func.id for node in ast.walk(ast.parse(path.read_text("utf-8"))) if _is_call(node)]
        if "settings" in names and not place.startswith(ENTRIES):
            asked.append(place)
    assert not asked, (
        f"these ask for the settings themselves: {', '.join(asked)}; let their callers pass what they need"
    )


def _is_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def test_importing_flows_changes_nothing(tmp_path: Path) -> None:
    """No folder, no variable, no handler: that is what `begin` is for. And what few runs need is not read by all."""
    program = (
        "import logging, os, sys; before = dict(os.environ); import flows.retrain, flows.deployments, gptpipe; "
        "changed = {k for k in {*before, *os.environ} if before.get(k) != os.environ.get(k)}; "
        "assert not {k for k in changed if k.startswith(('GPTPIPE', 'PREFECT', 'MLFLOW', 'AWS', 'OMP'))}, changed; "
        "assert not logging.getLogger('gptpipe').handlers; "
        "assert not {'mlflow', 'scipy', 'pandas', 'matplotlib', 'transformers'} & set(sys.modules)"
    )
    home = {"HOME": str(tmp_path), "PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, **home}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / ".gptpipe").exists()


def test_no_test_reaches_behind_a_module_s_door() -> None:
    """A test takes what a caller could: no private name is imported, or replaced."""
    private = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("gptpipe", "flows"):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
                names = [str(each.value).split(".")[-1] for each in node.args if isinstance(each, ast.Constant)]
            private += [
                f"{path.relative_to(ROOT)}:{node.lineno} {name}"
                for name in names
                if name.startswith("_") and not name.startswith("__")
            ]
    assert not private, "\n".join(private)
