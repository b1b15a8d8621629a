"""Packaging shim: everything is in pyproject.toml but one copy of a file.

`audioset_label.csv` at the top level is the one source of class names; the installed package carries
it among its assets.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithLabels(build_py):
    """Builds the package, and puts the table of class names among its assets."""

    def run(self) -> None:
        """Copy the table after the modules, but for an editable installation, which reads it from the checkout."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "whisper_at", "assets", "audioset_label.csv")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(__file__).with_name("audioset_label.csv"), target)


setup(cmdclass={"build_py": BuildWithLabels})
