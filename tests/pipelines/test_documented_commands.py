"""Every command of the docs: KFP's own send what the API expects, and this project's are ones that it knows."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp.cli.cli import cli

from llm_retriever.console import COMMANDS
from pipelines import __main__ as program
from pipelines import presets
from pipelines.choice import choose
from tests.pipelines.api_server import STARTED, Moment, Request, Server, serving

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("*.md")))
OURS = r"(?:\.venv/bin/)?llm-retriever "
CREATING = {
    ("experiment", "create"): "/experiments",
    ("pipeline", "create"): "/pipelines/upload",
    ("pipeline", "create-version"): "/pipelines/upload_version",
    ("run", "create"): "/runs",
    ("recurring-run", "create"): "/recurringruns",
}


def blocks(language: str = r"\w*") -> list[str]:
    """The docs' code blocks."""
    fenced = re.compile(rf"^```{language}\n(.*?)^```$", re.DOTALL | re.M)
    return [text for path in DOCS for text in fenced.findall(path.read_text())]


def commands(start: str) -> list[str]:
    """Commands of the docs' code blocks that begin so; continued lines are joined."""
    lines = [line.strip() for block in blocks() for line in block.replace("\\\n", " ").splitlines()]
    return list(dict.fromkeys(line for line in lines if re.match(start, line)))


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)


KFP_COMMANDS = commands("kfp ")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving() as running:
        running.pipelines["pipeline-7"] = "train-retriever"
        running.experiments["default-of-a-test"] = "experiment-1"
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are given: `build/` holds every pipeline that they name."""
    there = tmp_path_factory.mktemp("documented")
    named = {name for command in KFP_COMMANDS for name in re.findall(r"build/(\w+)\.yaml", command)}
    assert named
    for name in named:
        values = ["promote_uri=s3://my-bucket/published"] if name == "retrain" else []
        target = str(there / "build" / f"{name}.yaml")
        assert program.main(["compile", name, *values, "--output", target]) == 0
    return there


def run_kfp(command: str, server: Server, folder: Path) -> Request | None:
    """Gives the command to KFP's real command line.

    Returns:
        The request that creates something, if the command does.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KF_PIPELINES_ENDPOINT", server.url)
        patch.chdir(folder)
        # What the program `kfp` itself calls; a process each would take seconds to import it.
        cli.main(words(command)[1:], "kfp", standalone_mode=False, obj={}, auto_envvar_prefix="KFP")
    path = CREATING.get(verb(command))
    if path is None:
        return None
    (request,) = server.asked("POST", path)
    return request


def verb(command: str) -> tuple[str, str]:
    plain = [word for word in words(re.sub(r" -n \S+ (?=run)", " ", command))[1:] if not word.startswith("-")]
    return plain[0], plain[1]


def option(command: str, *flags: str) -> str:
    given = words(command)
    return next(given[given.index(flag) + 1] for flag in flags if flag in given)


def package(command: str, folder: Path) -> list[Any]:
    (name,) = re.findall(r"build/\w+\.yaml", command)
    return list(yaml.safe_load_all((folder / name).read_text()))


def parameters(command: str) -> dict[str, Any]:
    """The command's `key=value`s, of the types that the form declares."""
    (name,) = re.findall(r"build/(\w+)\.yaml", command)
    declared = choose([name], complete=False).pipeline.component_spec.inputs
    given = dict(word.split("=", 1) for word in words(command) if re.match(r"[a-z]\w*=", word))
    assert set(given) <= set(declared)
    return {
        n: json.loads(text) if declared[n].type != "String" or text[:1] == '"' else text for n, text in given.items()
    }


def test_the_docs_show_every_kind_of_command() -> None:
    kinds = {verb(command) for command in KFP_COMMANDS}
    assert kinds == {*CREATING, ("run", "list"), ("run", "get")}


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in KFP_COMMANDS if verb(c) == ("run", "create")])
def test_kfp_run_create_sends_the_pipeline_and_typed_values(command: str, server: Server, folder: Path) -> None:
    request = run_kfp(command, server, folder)
    assert request
    pipeline, platform = package(command, folder)
    assert request.body["pipeline_spec"] == {"pipeline_spec": pipeline, "platform_spec": platform}
    assert request.body["experiment_id"] == server.experiments[option(command, "-e")]
    sent = request.body["runtime_config"]["parameters"]
    wanted = parameters(command)
    assert sent == wanted
    assert {name: type(value) for name, value in sent.items()} == {name: type(v) for name, v in wanted.items()}
    required = {n for n, p in pipeline["root"]["inputDefinitions"]["parameters"].items() if "defaultValue" not in p}
    assert required <= set(sent)


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in KFP_COMMANDS if verb(c) == ("recurring-run", "create")])
def test_kfp_recurring_run_create_makes_an_enabled_schedule_of_texts(
    command: str, server: Server, folder: Path
) -> None:
    request = run_kfp(command, server, folder)
    assert request
    pipeline, platform = package(command, folder)
    assert request.body["pipeline_spec"] == {"pipeline_spec": pipeline, "platform_spec": platform}
    assert request.body["display_name"] == option(command, "--job-name")
    assert request.body["mode"] == "ENABLE"
    assert request.body["no_catchup"] is True
    assert int(request.body["max_concurrency"]) == 1
    assert request.body["trigger"]["cron_schedule"]["cron"] == option(command, "--cron-expression")
    # Sent as texts whatever they are, so that all of them have to be such.
    sent = request.body["runtime_config"]["parameters"]
    assert sent == parameters(command)
    assert {type(value) for value in sent.values()} == {str}


@pytest.mark.parametrize("command", [c for c in KFP_COMMANDS if verb(c)[0] == "pipeline"])
def test_kfp_pipeline_commands_upload_both_documents(command: str, server: Server, folder: Path) -> None:
    request = run_kfp(command, server, folder)
    assert request
    assert request.body == package(command, folder)
    assert request.query["name"] == option(command, "-v" if verb(command)[1] == "create-version" else "-p")
    if verb(command)[1] == "create-version":
        assert request.query["pipelineid"] == "pipeline-7"


@pytest.mark.parametrize("command", [c for c in KFP_COMMANDS if verb(c)[0] == "experiment"])
def test_kfp_experiment_create_names_it(command: str, server: Server, folder: Path) -> None:
    request = run_kfp(command, server, folder)
    assert request
    assert request.body["display_name"] == words(command)[-1]


@pytest.mark.parametrize("command", [c for c in KFP_COMMANDS if " -n retrievers run " in c])
def test_the_namespace_of_a_profile_goes_to_the_experiment(command: str, server: Server, folder: Path) -> None:
    run_kfp(command, server, folder)
    (experiment,) = server.asked("POST", "/experiments")
    assert experiment.body["namespace"] == "retrievers"


@pytest.mark.parametrize(("command", "path"), [("kfp run list", "/runs"), ("kfp run get RUN-ID", "/runs/RUN-ID")])
def test_kfp_shows_runs(command: str, path: str, server: Server, folder: Path) -> None:
    assert command in KFP_COMMANDS
    server.runs["RUN-ID"] = [
        Moment({"run_id": "RUN-ID", "display_name": "first", "state": "RUNNING", "created_at": STARTED})
    ]
    run_kfp(command, server, folder)
    assert len(server.asked("GET", path)) == 1


@pytest.mark.slow
def test_a_documented_preset_can_be_read_and_compiled(tmp_path: Path) -> None:
    (text,) = [block for block in blocks("toml") if "[cluster" in block]
    (tmp_path / "ours.toml").write_text(text)
    assert presets.cluster(str(tmp_path / "ours.toml"))["tune"]["timeout_hours"] == 96
    target = tmp_path / "pipeline.yaml"
    assert program.main(["compile", "--preset", str(tmp_path / "ours.toml"), "--output", str(target)]) == 0


@pytest.mark.parametrize("command", commands(OURS))
def test_a_documented_command_of_this_project_is_one_that_it_knows(command: str) -> None:
    _, name, *given = words(command)
    parser = COMMANDS[name].parser(name)
    if "…" in given:  # what was said before goes on here
        return
    found, rest = parser.parse_known_args(given)
    assert [word for word in rest if word.startswith("-")] == []
    for word in (*getattr(found, "parameters", ()), *rest):
        assert re.fullmatch(r"[a-z]\w*(=.*)?", word), word
    preset = getattr(found, "preset", None)
    assert preset is None or preset == "ours.toml" or preset in presets.names()


def test_the_docs_show_every_command_of_this_project() -> None:
    named = {words(command)[1] for command in commands(OURS)}
    # These two are named in sentences.
    assert named == set(COMMANDS) - {"completion", "presets"}


def test_the_docs_name_the_command_by_its_short_name() -> None:
    old = re.compile(r"python -m (pipelines [a-z]|llm_retriever\.)")
    assert [(path.name, line) for path in DOCS for line in path.read_text().splitlines() if old.search(line)] == []
