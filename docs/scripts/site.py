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
    """Make links into docs/ relative to the site, where docs/ is the root."""
    return re.sub(r"(\]\((?:\.\./)*)docs/", r"\1", markdown)
