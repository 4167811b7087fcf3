"""Builds the images and writes their references where the compile step finds them.

    python -m images.build --registry registry.example/team --tag 0.1.0 --push

Each image is checked by importing what its steps use and running `--help` of each, as the cluster would run it: without
a network, with a root that cannot be written, without capabilities. After `--push` the references carry the digest under
which the registry keeps them, so a compiled pipeline names exactly these images; without it they carry the tag alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from llm_retriever import __version__, files
from pipelines.steps import STEPS

ROOT = Path(__file__).parents[1]
REFERENCES = ROOT / "components" / "images.json"
KINDS: dict[str, tuple[str, ...]] = {
    kind: tuple(name for name, step in STEPS.items() if kind in step.images) for kind in ("cpu", "gpu")
}
"""The steps that run in an image."""
IMPORTED = {
    "cpu": ("pyserini", "jnius_config", "pytrec_eval"),
    "gpu": ("torch", "transformers", "peft", "deepspeed", "faiss"),
}
"""What the steps import only when they need it; a package may be there and still lack a library of the system."""
AS_ON_THE_CLUSTER = [
    "--rm",
    "--network=none",
    "--read-only",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--user=1000:0",
]


class EngineError(Exception):
    """The container engine refused, or a step does not start in its image."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 1 the engine or a step failed."""
    options = _parser().parse_args(arguments)
    try:
        references = {kind: build(kind, options) for kind in options.images}
    except EngineError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    record(references, options.references)
    for kind, reference in references.items():
        print(f"{kind}: {reference}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m images.build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--registry", default="", metavar="HOST/PATH", help="Prefix of the names (default: none).")
    parser.add_argument("--tag", default=__version__, help="(default: the project's version, %(default)s)")
    parser.add_argument("--push", action="store_true", help="Push, and record the digests.")
    parser.add_argument("--images", nargs="+", choices=list(KINDS), default=list(KINDS), help="(default: both)")
    parser.add_argument("--engine", default="docker", help="docker, or podman (default: %(default)s).")
    parser.add_argument("--network", default="default", help="Network of the build, as the engine calls it.")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="BASE, FAISS, OFFLINE.")
    parser.add_argument("--references", type=Path, default=REFERENCES, help="(default: components/images.json)")
    return parser


def build(kind: str, given: argparse.Namespace) -> str:
    """Builds one image and checks it.

    Returns:
        Its reference: `name:tag`, after a push `name:tag@sha256:…`.

    Raises:
        EngineError: The build failed, a step does not start, or the push was refused.
    """
    name = "/".join(filter(None, [given.registry.rstrip("/"), f"llm-retriever-{kind}"]))
    reference = f"{name}:{given.tag}"
    arguments = [f"VERSION={__version__}", f"REVISION={_revision()}", *given.build_arg]
    options = [text for argument in arguments for text in ("--build-arg", argument)]
    if given.network != "default":
        options += ["--network", given.network]
    file = ROOT / "images" / kind / "Dockerfile"
    run_engine(given.engine, "build", *options, "--file", str(file), "--tag", reference, str(ROOT), shown=True)
    for module in IMPORTED[kind]:
        run_engine(given.engine, "run", *AS_ON_THE_CLUSTER, reference, "python", "-c", f"import {module}")
    for step in KINDS[kind]:
        run_engine(given.engine, "run", *AS_ON_THE_CLUSTER, reference, "python", "-m", f"components.{step}", "--help")
    if not given.push:
        return reference
    run_engine(given.engine, "push", reference, shown=True)
    told = run_engine(given.engine, "inspect", "--format", "{{json .RepoDigests}}", reference)
    # The engine may warn before it answers, and may shorten a name: docker.io/team/image is team/image to it.
    digests = json.loads(told.strip().splitlines()[-1])
    own = [digest for digest in digests if f"/{name}".endswith("/" + digest.split("@")[0])]
    if not own:
        raise EngineError(f"the registry gave no digest for {reference}")
    return f"{reference}@{own[0].split('@', 1)[1]}"


def record(references: dict[str, str], path: Path) -> None:
    """Writes references into the file that pipelines read; images that were not built keep theirs."""
    known = json.loads(path.read_text()) if path.exists() else {}
    files.write_json(path, {**known, **references})


def _revision() -> str:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return commit.stdout.strip() or "unknown"


def run_engine(engine: str, *arguments: str, shown: bool = False, given: str | None = None) -> str:
    """Runs a command of the engine.

    Args:
        engine: docker, or podman.
        arguments: Arguments of the engine.
        shown: Let it write to the terminal, instead of returning what it writes.
        given: Text for its standard input.

    Raises:
        EngineError: It is not installed, or the command failed.
    """
    try:
        done = subprocess.run(
            [engine, *arguments],
            input=given,
            stdout=None if shown else subprocess.PIPE,
            stderr=None if shown else subprocess.STDOUT,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise EngineError(f"{engine} is not installed") from None
    if done.returncode:
        # docker ends what went wrong with an invitation to read its help.
        said = [line for line in (done.stdout or "").strip().splitlines() if line and "--help'" not in line]
        raise EngineError(": ".join([f"{engine} {arguments[0]} failed ({' '.join(arguments[-4:])})", *said[-1:]]))
    return done.stdout or ""


if __name__ == "__main__":
    raise SystemExit(main())
