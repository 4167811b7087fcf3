"""`llm-retriever`: one name for all commands, each the same code as under `python -m`."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import llm_retriever.encoders.__main__
import llm_retriever.exporting.__main__
import pipelines.__main__
from llm_retriever import __version__, console
from llm_retriever.completion import script
from llm_retriever.indexing import search
from llm_retriever.processes import command_line
from llm_retriever.promotion import versions
from tests.test_house import HEAVY, ROOT

PROGRAM = [sys.executable, "-m", "llm_retriever"]
MODULES = {
    "encoders": llm_retriever.encoders.__main__,
    "search": search,
    "export": llm_retriever.exporting.__main__,
    "versions": versions,
}


def completed(*words: str) -> set[str]:
    """What bash offers for the last word."""
    asked = f"COMP_WORDS=({shlex.join(['llm-retriever', *words])}); COMP_CWORD={len(words)}; _llm_retriever"
    text = f'{script("bash")}\n{asked}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_help_has_a_line_for_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        console.main([])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    listed = re.findall(r"^  (\w+)  +\w", shown, re.M)
    assert listed == list(console.COMMANDS)


def test_the_version_is_the_projects(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        console.main(["--version"])
    assert capsys.readouterr().out == f"llm-retriever {__version__}\n"


@pytest.mark.parametrize("name", console.COMMANDS)
def test_a_command_is_called_in_its_help_what_was_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        console.main([name, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: llm-retriever {name} ")


def test_every_command_of_the_pipelines_is_there_and_called_by_its_name() -> None:
    own = {name for name, command in console.COMMANDS.items() if command.module == console.PIPELINES}
    known = command_line.subparsers(pipelines.__main__.parser())
    assert set(known) == own | {"run-local"}
    assert known["run"] is known["run-local"]


def test_a_mistake_in_a_parameter_is_told_under_the_commands_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = 'field "mine_depth": 0 is refused; input should be greater than or equal to 1\n'
    for words in (["run", "--preset", "demo-cpu"], ["compare"], ["compile"]):
        assert console.main([*words, "mine_depth=0"]) == 2
        assert capsys.readouterr().err == f"llm-retriever {words[0]}: {refused}"
    assert pipelines.__main__.main(["compile", "mine_depth=0"]) == 2
    assert capsys.readouterr().err == f"pipelines: {refused}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("versions", ["list", "s3:/bucket"]),
        ("search", ["--index", "nowhere-at-all", "a question"]),
        ("export", ["--retriever", "nowhere-at-all", "--format", "merged", "--output", "out"]),
        ("encoders", ["convert", "nowhere-at-all", "out"]),
    ],
)
def test_bad_input_ends_a_command_as_it_ends_its_module(
    name: str, words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = MODULES[name]
    assert module.main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"{module.PROGRAM.rpartition('.')[2]}: ")
    assert console.main([name, *words]) == 2
    assert capsys.readouterr().err == f"llm-retriever {name}: {told.partition(': ')[2]}"


@pytest.mark.parametrize(
    "words",
    [["search", "--index", "x" * 300, "what"], ["versions", "list", "x" * 300], ["compile", "--output", "x" * 300]],
)
def test_a_path_that_no_file_can_have_ends_with_code_2(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert console.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"llm-retriever {words[0]}: ")
    assert line.endswith("file name too long; give another path")


@pytest.mark.parametrize("words", [["nothing"], ["run", "--nothing"], ["versions"], ["export", "--format", "x"]])
def test_a_command_line_that_is_none_ends_with_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        console.main(words)
    name = "" if words == ["nothing"] else f" {words[0]}"
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"llm-retriever{name}: error: ")


@pytest.mark.slow
def test_comparing_is_running_the_comparison() -> None:
    parser = pipelines.__main__.parser()
    short = parser.parse_args(["compare", "--variants", "ql-ablation", "tune_epochs=1"])
    long = parser.parse_args(["run", "--variants", "ql-ablation", "compare_methods", "tune_epochs=1"])
    chosen = [pipelines.__main__._chosen(given) for given in (short, long)]
    assert chosen[0].name == chosen[1].name == "compare_methods"
    assert (chosen[0].told, chosen[0].flat) == (chosen[1].told, chosen[1].flat)
    assert short.command is long.command


def test_no_help_loads_anything_heavy() -> None:
    code = "import sys; from llm_retriever import console\n"
    code += "for name, command in console.COMMANDS.items(): command.parser(name).format_help()\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()


def test_the_first_help_loads_neither_settings_nor_pipelines() -> None:
    code = "import sys; from llm_retriever import console; console.parser().format_help(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"pydantic", "numpy", "pipelines", "llm_retriever.settings"} & set(done.stdout.split()) == set()


def test_a_shell_completes_commands_their_commands_and_flags() -> None:
    assert completed("") == set(console.COMMANDS)
    assert completed("co") == {"compare", "compile", "completion"}
    assert completed("versions", "ro") == {"rollback"}
    assert completed("versions", "rollback", "--pre") == {"--previous"}
    assert completed("versions", "rollback", "s3://bucket/published", "--t") == {"--to"}
    assert completed("run", "corpus_uri=DIR", "--no") == {"--no-cache"}
    assert completed("completion", "") == {"bash", "zsh"}
    assert completed("run", "") == set()


def test_reading_a_part_of_the_help_is_no_error() -> None:
    command = f'{shlex.join([*PROGRAM, "presets"])} | true; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
