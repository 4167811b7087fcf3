"""How the wheel is laid out; everything else about the project is in pyproject.toml.

In the repository `components` and `pipelines` lie beside the package `llm_retriever`. In a wheel they lie within it, in
`llm_retriever/_kubeflow`: as packages of their own in site-packages such names would be in the way of others.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CARRIED = ("components", "pipelines")


class BuildWithKubeflow(build_py):
    """Builds the package, with the folders that it carries; the images are built without `pipelines`."""

    def run(self) -> None:
        """Builds; an editable installation takes the folders from where they are."""
        super().run()
        if self.editable_mode:
            return
        within = Path(self.build_lib) / "llm_retriever" / "_kubeflow"
        shutil.rmtree(within, ignore_errors=True)
        for folder in filter(Path.is_dir, map(Path, CARRIED)):
            shutil.copytree(folder, within / folder, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithKubeflow})
