"""MkDocs hook: pages and pictures that live elsewhere in the repository are part of the site, too."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
ELSEWHERE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/README.md",
    "benchmarks/results/**/*.png",
    "pretrained_models/*.md",
    "recipes/*/README.md",
    "recipes/*/results/**/*.*",
    "sample/README.md",
    "sample/*.png",
    "tests/third_party/*.md",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of ELSEWHERE under their own paths, so that their relative links hold."""
    for pattern in ELSEWHERE:
        for path in sorted(ROOT.glob(pattern)):
            uri = path.relative_to(ROOT).as_posix()
            file = File.generated(config, uri, abs_src_path=str(path))
            if uri.endswith("results.md"):
                file.inclusion = file.inclusion.NOT_IN_NAV
            files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links hold in the site, where docs/ is not a folder of its own; list the modules of a room."""
    if page.file.src_dir == config.docs_dir:
        markdown = markdown.replace("](../", "](")
    markdown = re.sub(r"(\]\((?:\.\./)*)docs/", r"\1", markdown)
    return re.sub(r"<!-- modules: (\w+) -->", lambda match: _modules(match[1]), markdown)


def _modules(room: str) -> str:
    """Sections that describe what is public in each module of a room, and what its packages define themselves."""
    sections = []
    for path in sorted((ROOT / "whisper_at" / room).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name == f"whisper_at.{room}" or (path.stem[0] == "_" and path.stem != "__init__"):
            continue
        options = "show_root_heading: false, show_root_toc_entry: false"
        if path.stem == "__init__":
            options += f", members: [{', '.join(_defined(path))}]"
        title = name.removeprefix(f"whisper_at.{room}.")
        sections.append(f"## {title}\n\n`{name}`\n\n::: {name}\n    options: {{ {options} }}")
    return "\n\n".join(sections)


def _defined(path: Path) -> list[str]:
    """Names of the functions and classes that a module defines itself, not those that it imports."""
    nodes = ast.parse(path.read_text("utf-8")).body
    names = [node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return [name for name in names if name[0] != "_"]
