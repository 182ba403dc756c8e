"""The house: a file imports only from floors below its own."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sparse_tx"
FLOORS = [
    {"errors", "files", "folders"},
    {"patterns"},
    {"config", "masks", "data", "native"},
    {"attention", "cache", "accounting"},
    {"model", "vision"},
    {"checkpoint", "evaluation", "generation"},
    {"training"},
    {"profiler", "serving"},
    {"commands"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def imported_modules(path: Path) -> set[tuple[str, ...]]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {tuple(name.split(".")[1:]) for name in names if name.startswith("sparse_tx.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = path.relative_to(PACKAGE).parts[0]
    for module in imported_modules(path):
        other = module[0]
        assert other in FLOOR_OF, f"{other} has no floor in the picture"
        if other != room:
            assert FLOOR_OF[other] < FLOOR_OF[room], f"{room} imports {other}"


def test_engines_do_not_know_each_other():
    engines = {
        path.stem: path
        for path in (PACKAGE / "attention").iterdir()
        if path.stem not in ("__init__", "api", "__pycache__")
    }
    assert set(engines) >= {"reference", "views", "cpu"}
    for name, path in engines.items():
        for file in path.rglob("*.py") if path.is_dir() else [path]:
            for module in imported_modules(file):
                if module[0] == "attention":
                    assert module[1] in (name, "derivatives"), f"{file} imports {module}"


def test_the_check_sees_imports():
    assert ("patterns", "Pattern") in imported_modules(PACKAGE / "attention" / "reference.py")


def test_no_room_of_leftovers():
    assert not [path for path in FILES if path.stem in ("utils", "common", "misc")]
