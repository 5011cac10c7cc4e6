"""The house: a package imports only from lower floors, and no file grows out of sight."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (
    ("errors", "wording", "version", "extras", "cores"),
    ("config", "progress"),
    ("storage", "model"),
    ("tokenizer",),
    ("dataset", "weights"),
    ("corpus", "launch", "generation"),
    ("train", "evaluation", "node"),
    ("tracking", "export", "harness"),
    ("services", "pipeline"),
    ("flows",),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS, 1) for room in rooms}
FILES = sorted(path for top in ("gptpipe", "flows") for path in (ROOT / top).rglob("*.py"))
MOST_LINES = 400


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
