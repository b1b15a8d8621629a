"""The house: modules import downwards only, and never in circles, but for types."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "whisper_at"
FLOORS = (
    *(
        "version",
        "suggest",
        "languages",
        "downmix",
        "timestamps",
        "tracks",
        "limits",
        "ffmpeg_messages",
        "ffmpeg_process",
        "recordings",
        "ffmpeg_decoder",
        "audio",
        "mel",
        "windows",
    ),
    *("checkpoints", "tagging", "engine", "timing", "tokenizer", "triton_ops", "normalizers", "decoding", "prompt"),
    *(
        "segments",
        "speech_tagger",
        "speech_gate",
        "fallback",
        "options",
        "window_decoder",
        "batched",
        "transcribe",
        "model",
        "loading",
        "captioning",
    ),
    *("formats", "writers", "utils", "data", "features", "train", "adapt", "embed", "study", "_api"),
    *("live", "serve", "archive", "cli", "__main__"),
)
"""Modules and rooms from the ground up: each may import itself and what stands before it."""


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def runtime_imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements, wherever they are, but those under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for other in child.orelse:
                yield from runtime_imports(other)
        elif isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        else:
            yield from runtime_imports(child)


def targets(statement: ast.Import | ast.ImportFrom, module: str, is_package: bool, known: set[str]) -> set[str]:
    """The modules of `known` that a statement imports."""
    if isinstance(statement, ast.Import):
        names = {alias.name for alias in statement.names}
    else:
        base = module.split(".") if is_package else module.split(".")[:-1]
        base = base[: len(base) - statement.level + 1] if statement.level else []
        origin = ".".join([*base, *([statement.module] if statement.module else [])])
        names = {f"{origin}.{alias.name}" for alias in statement.names}
        names |= {origin} - ({origin} if names <= known else set())
    return {name for name in names if name in known}


@cache
def graph(folder: str) -> dict[str, frozenset[str]]:
    """Module → modules of the same folder that it imports at run time."""
    paths = {module_name(path, ROOT): path for path in sorted((ROOT / folder).rglob("*.py"))}
    edges = {}
    for module, path in paths.items():
        found: set[str] = set()
        for statement in runtime_imports(ast.parse(path.read_text(encoding="utf-8"))):
            found |= targets(statement, module, path.name == "__init__.py", set(paths))
        edges[module] = frozenset(found - {module})
    return edges


def circle(edges: dict[str, frozenset[str]]) -> list[str]:
    """A circle of modules, or nothing."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for other in sorted(edges[module]):
                if found := visit(other, [*path, module]):
                    return found
            done.add(module)
        return []

    return next((found for module in sorted(edges) if (found := visit(module, []))), [])


@pytest.mark.parametrize("folder", ["whisper_at", "recipes", "benchmarks"])
def test_no_circles(folder):
    assert circle(graph(folder)) == []


def test_a_circle_is_found():
    """The check itself: a circle of three, which no pair of them shows."""
    edges = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("a"), "d": frozenset("a")}
    assert circle(edges) == ["a", "b", "c", "a"]
    assert circle({"a": frozenset("bc"), "b": frozenset("c"), "c": frozenset()}) == []


def floor(module: str) -> int:
    return FLOORS.index(module.split(".")[1])


def test_every_module_has_its_floor():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms - {"__init__", "assets"} == set(FLOORS)


def test_imports_go_down():
    upwards = [
        f"{module} imports {other}"
        for module, others in graph("whisper_at").items()
        for other in others
        if "." in module and "." in other and floor(other) > floor(module)
    ]
    assert upwards == []
