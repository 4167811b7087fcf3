"""Prints as JSON what is installed where it runs.

`images.sbom` hands this text to the Python of an image, so it imports nothing but the standard library.
"""

import contextlib
import json
import platform
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata


def distributions() -> list[dict]:
    """Lists Python distributions of this environment and of its base Python: name, version, licence, requirements."""
    base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
    places = [*sys.path, sysconfig.get_path("purelib", "posix_prefix", base)]
    rows = {}
    for distribution in metadata.distributions(path=list(dict.fromkeys(places))):
        metadata_of = distribution.metadata
        licence = metadata_of.get("License-Expression") or metadata_of.get("License") or ""
        row = {"name": metadata_of["Name"], "version": distribution.version, "requires": distribution.requires or []}
        rows.setdefault((row["name"], row["version"]), {**row, "licence": licence.strip()})
    return [rows[key] for key in sorted(rows)]


def debian() -> list[dict]:
    """Lists Debian packages of the system; none where it is not made of them."""
    if shutil.which("dpkg-query") is None:
        return []
    asked = ["dpkg-query", "--show", "--showformat", "${Package}\\t${Version}\\t${Architecture}\\n"]
    lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    return [dict(zip(("name", "version", "architecture"), line.split("\t"), strict=True)) for line in lines]


def system() -> dict:
    """Reads `ID`, `VERSION_ID` and the like of the operating system; empty where it does not tell."""
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release()
    return {}


if __name__ == "__main__":
    told = {"python": platform.python_version(), "system": system(), "debian": debian()}
    json.dump({**told, "distributions": distributions()}, sys.stdout)
