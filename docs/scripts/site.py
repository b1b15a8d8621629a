"""MkDocs hook: pages and pictures that live elsewhere in the repository are part of the site, too."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
ELSEWHERE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/README.md",
    "benchmarks/results/**/*.png",
    "pretrained_models/*.md",
    "recipes/*/README.md",
    "recipes/*/results/*",
    "sample/README.md",
    "sample/*.png",
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


def on_page_markdown(markdown: str, page: object, config: MkDocsConfig, files: Files) -> str:
    """Make links into docs/ relative to the site, where docs/ is the root; list the modules of a room."""
    markdown = re.sub(r"(\]\((?:\.\./)*)docs/", r"\1", markdown)
    return re.sub(r"<!-- modules: (\w+) -->", lambda match: _modules(match[1]), markdown)


def _modules(room: str) -> str:
    """Sections that describe what is public in each module of a room."""
    names = sorted(path.stem for path in (ROOT / "whisper_at" / room).glob("*.py") if path.stem[0] != "_")
    options = "    options: { show_root_heading: false, show_root_toc_entry: false }"
    return "\n\n".join(
        f"## {name}\n\n`whisper_at.{room}.{name}`\n\n::: whisper_at.{room}.{name}\n{options}" for name in names
    )
