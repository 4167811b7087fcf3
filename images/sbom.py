"""Writes the content of each image as a CycloneDX document (1.6, JSON): BUILD/sbom/cpu.cdx.json and gpu.cdx.json.

    python -m images.sbom                              # the images that components/images.json names
    python -m images.sbom --from lock                  # no engine: what the lock and this environment say

An image is asked itself: its Python tells the installed distributions, dpkg the Debian packages. `--from lock` follows the
requirements of images/*/packages.txt through the packages installed here, at the lock's versions; it knows neither the base
nor, where torch is another build here, the libraries that torch brings along.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from images import requirements
from images.build import AS_ON_THE_CLUSTER, KINDS, REFERENCES, ROOT, EngineError, run_engine
from llm_retriever import __version__, files
from llm_retriever.errors import EXIT_BAD_INPUT, InputError

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component

OUTPUT = ROOT / "build" / "sbom"
LICENCE_LENGTH = 100


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 1 the engine failed, 2 bad input."""
    options = _parser().parse_args(arguments)
    try:
        for kind in options.images:
            reference = _reference(kind, options)
            told = requirements.inventory(kind) if options.source == "lock" else _asked(options.engine, reference)
            path = options.output / f"{kind}.cdx.json"
            files.write_text(path, as_json(document(kind, told, reference, options.source)))
            packages, system = len(told["distributions"]), len(told["debian"])
            print(f"{path}: {packages} Python and {system} Debian packages, from the {options.source}")
    except EngineError as error:
        print(f"sbom: {error}; --from lock does without an engine", file=sys.stderr)
        return 1
    except InputError as error:
        print(f"sbom: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m images.sbom", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="source", choices=["image", "lock"], default="image", help="(default: image)")
    parser.add_argument("--images", nargs="+", choices=list(KINDS), default=list(KINDS), help="(default: both)")
    parser.add_argument("--engine", default="docker", help="docker, or podman (default: %(default)s).")
    parser.add_argument("--references", type=Path, default=REFERENCES, help="(default: components/images.json)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="Folder (default: build/sbom).")
    return parser


def _reference(kind: str, options: argparse.Namespace) -> str:
    if options.source == "lock":
        return f"llm-retriever-{kind}:{__version__}"
    known = files.read_json(options.references, hint="make images builds them; --from lock does without")
    if kind not in known:
        raise InputError(f"names no image {kind!r}", file=options.references, hint="make images")
    return str(known[kind])


def _asked(engine: str, reference: str) -> dict[str, Any]:
    """Asks the image itself for its content; see `images/inventory.py`."""
    program = (ROOT / "images" / "inventory.py").read_text()
    output = run_engine(engine, "run", "--interactive", *AS_ON_THE_CLUSTER, reference, "python", "-", given=program)
    # The engine may warn on the same channel.
    inventory: dict[str, Any] = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    return inventory


def document(kind: str, told: dict[str, Any], reference: str, source: str) -> Bom:
    """Builds the CycloneDX document of an image.

    Args:
        kind: `cpu` or `gpu`.
        told: What `images/inventory.py` prints, of the image or of `requirements.inventory`.
        reference: The image's `name:tag` or `name:tag@sha256:…`.
        source: `image` or `lock`; the property `llm-retriever:source` of the image.
    """
    from cyclonedx.model import Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.tool import Tool

    name, _, tag = reference.partition("@")[0].rpartition(":")
    image = Component(type=ComponentType.CONTAINER, name=name, version=tag, bom_ref=reference)
    image.description = f"Steps: {', '.join(KINDS[kind])}"
    image.properties.add(Property(name=f"{requirements.OWN}:source", value=source))
    bom = Bom()
    bom.metadata.component = image
    bom.metadata.tools.tools.add(Tool(vendor=requirements.OWN, name="images.sbom", version=__version__))
    packages = [_distribution(row) for row in told["distributions"]]
    parts = [*packages, *_system(told), *(_debian(row, told["system"]) for row in told["debian"])]
    for component in parts:
        bom.components.add(component)
    bom.register_dependency(image, parts)
    known = {requirements.canonical(package.name): package for package in packages}
    for row, package in zip(told["distributions"], packages, strict=True):
        needed = requirements.needed(row["requires"])
        bom.register_dependency(package, [known[name] for name in needed if name in known])
    return bom


def as_json(bom: Bom) -> str:
    """Formats a document as text."""
    from cyclonedx.output.json import JsonV1Dot6

    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def _distribution(row: dict[str, Any]) -> Component:
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    # The project is on no index: whoever takes its name there must not be audited in its place.
    own = row["name"] == requirements.OWN
    purl = PackageURL("generic" if own else "pypi", None, requirements.canonical(row["name"]), row["version"])
    kind = ComponentType.APPLICATION if own else ComponentType.LIBRARY
    component = Component(type=kind, name=row["name"], version=row["version"], purl=purl, bom_ref=str(purl))
    licence = row["licence"].splitlines()[0] if row["licence"] else ""
    if 0 < len(licence) <= LICENCE_LENGTH:
        component.licenses.add(LicenseFactory().make_from_string(licence))
    return component


def _system(told: dict[str, Any]) -> list[Component]:
    """Components of Python itself and of the operating system, where they are known."""
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    rows = [(ComponentType.PLATFORM, "python", told["python"])] if told["python"] else []
    if told["system"]:
        rows.append((ComponentType.OPERATING_SYSTEM, told["system"]["ID"], told["system"].get("VERSION_ID", "")))
    made = [(kind, name, version, PackageURL("generic", None, name, version)) for kind, name, version in rows]
    return [Component(type=k, name=n, version=v, purl=purl, bom_ref=str(purl)) for k, n, v, purl in made]


def _debian(row: dict[str, str], system: dict[str, str]) -> Component:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    family = system.get("ID", "debian")
    qualifiers = {"arch": row["architecture"], "distro": f"{family}-{system.get('VERSION_ID', '')}"}
    purl = PackageURL("deb", family, row["name"], row["version"], qualifiers)
    return Component(type=ComponentType.LIBRARY, name=row["name"], version=row["version"], purl=purl, bom_ref=str(purl))


if __name__ == "__main__":
    raise SystemExit(main())
