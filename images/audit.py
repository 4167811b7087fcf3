"""Checks the Python packages of the images for known advisories, by pip-audit.

    python -m images.audit                                         # build/sbom/*.cdx.json, PyPI's advisories
    python -m images.audit --vulnerability-service osv --ignore-vuln GHSA-…

Options that are not its own go to pip-audit. pip-audit passes over packages of which it can learn nothing, as behind a mirror
that has no advisories; here they are told apart from packages without advisories, and fail the audit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from images.sbom import OUTPUT
from llm_retriever import files
from llm_retriever.errors import EXIT_BAD_INPUT, InputError

SHOWN = 5
REACH = "run it where PyPI itself answers, or give --vulnerability-service osv (and --osv-url URL for a mirror)"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 nothing known, 1 something found, 2 not all could be checked."""
    parser = argparse.ArgumentParser(
        prog="python -m images.audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sbom", type=Path, default=OUTPUT, help="Folder of the documents (default: build/sbom).")
    given, options = parser.parse_known_args(arguments)
    try:
        held = packages(given.sbom)
        rows = checked(held, options)
    except InputError as error:
        print(f"audit: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    found = [(row, told) for row in rows for told in row["vulns"]]
    for row, told in found:
        kinds, fixed = ", ".join(held[row["name"], row["version"]]), ", ".join(told["fix_versions"]) or "no version"
        print(f"{row['name']} {row['version']} ({kinds}): {told['id']}, mended in {fixed}")
    print(f"{len(rows)} packages checked, {len(found)} advisories")
    return 1 if found else 0


def packages(folder: Path) -> dict[tuple[str, str], list[str]]:
    """Collects the packages from PyPI in the documents of a folder: (name, public version) -> the images that hold it.

    Raises:
        InputError: There is no document.
    """
    from packageurl import PackageURL
    from packaging.version import Version

    held: dict[tuple[str, str], list[str]] = {}
    for path in sorted(folder.glob("*.cdx.json")):
        purls = [PackageURL.from_string(row["purl"]) for row in files.read_json(path).get("components", [])]
        for purl in purls:
            if purl.type == "pypi":
                # An advisory knows 2.13.0, not 2.13.0+cpu.
                key = (purl.name, Version(purl.version).public)
                held.setdefault(key, []).append(path.name.removesuffix(".cdx.json"))
    if not held:
        raise InputError("holds no document of an image", file=folder, hint="make sbom")
    return held


def checked(held: dict[tuple[str, str], list[str]], options: list[str]) -> list[dict[str, Any]]:
    """Asks pip-audit about packages: rows with `name`, `version` and `vulns`.

    Args:
        held: Packages by name and version.
        options: Further options of pip-audit.

    Raises:
        InputError: pip-audit failed, or could learn nothing of a package.
    """
    with tempfile.TemporaryDirectory() as scratch:
        asked, answer = Path(scratch) / "requirements.txt", Path(scratch) / "answer.json"
        asked.write_text("".join(f"{name}=={version}\n" for name, version in sorted(held)))
        command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner=off"]
        command += ["--requirement", str(asked), "--format=json", "--output", str(answer), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not answer.exists():
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise InputError(f"no advisories could be had: pip-audit says {last!r}", hint=REACH)
        rows: list[dict[str, Any]] = json.loads(answer.read_text())["dependencies"]
    check_all_audited(rows)
    return rows


def check_all_audited(rows: list[dict[str, Any]]) -> None:
    """Raises InputError for an answer that passes over packages.

    Args:
        rows: Rows of pip-audit's answer; those that it passed over have a `skip_reason`.

    Raises:
        InputError: There is such a row.
    """
    unknown = [row["name"] for row in rows if "skip_reason" in row]
    if unknown:
        shown = ", ".join(unknown[:SHOWN]) + (", …" if len(unknown) > SHOWN else "")
        raise InputError(f"no advisories could be had for {len(unknown)} of {len(rows)} packages ({shown})", hint=REACH)


if __name__ == "__main__":
    raise SystemExit(main())
