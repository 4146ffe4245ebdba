#!/usr/bin/env python3
"""`make sbom`: dist/bucketworks-VERSION.cdx.json, what Bucketworks is made of, as CycloneDX 1.6.

    deploy/release/make_sbom.py [--output FILE]

In it: every distribution that requirements.txt and the extras lock, with its hashes, licence and needs; the browser code of the
console; and which of them the Debian package carries. One rule: the same tree makes the same bytes.
"""

import argparse
import base64
import importlib.util
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid5

from licences import browser_licence, browser_packages, licence_of
from locked import ROOT, Locked, ReleaseFailed, epoch, needs, normalized, project, read_lock, shipped

SPEC_VERSION = "1.6"
NAMESPACE = UUID("6f3c7a52-0d6f-5c53-9d8b-2f8f5d3f6a10")
"""Serial numbers are drawn from it and the content, so that the same content has the same."""


def bill() -> dict[str, Any]:
    """The document. ReleaseFailed."""
    about, locked = project(), shipped()
    carried = carried_by_debian()
    root = f"pkg:pypi/{about['name']}@{about['version']}"
    parts = [python_part(one, carried) for one in locked.values()] + [browser_part(one) for one in browser_packages()]
    refs = {name: purl(one) for name, one in locked.items()}
    direct = sorted(refs[name] for name in _direct(about) if name in refs)
    graph = [{"ref": root, "dependsOn": direct + [part["bom-ref"] for part in parts if "npm/" in part["bom-ref"]]}]
    for name, one in locked.items():
        graph.append({"ref": purl(one), "dependsOn": [refs[other] for other in needs(name) if other in refs]})
    graph += [{"ref": part["bom-ref"], "dependsOn": []} for part in parts if "npm/" in part["bom-ref"]]
    body: dict[str, Any] = {
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": about["name"],
                "version": about["version"],
                "description": about["description"],
                "licenses": [{"expression": about["license"]}],
                "purl": root,
            },
        },
        "components": sorted(parts, key=lambda part: str(part["bom-ref"])),
        "dependencies": sorted(graph, key=lambda node: str(node["ref"])),
    }
    serial = uuid5(NAMESPACE, json.dumps(body, sort_keys=True))
    head = {"bomFormat": "CycloneDX", "specVersion": SPEC_VERSION, "serialNumber": serial.urn, "version": 1}
    return head | body


def purl(one: Locked) -> str:
    return f"pkg:pypi/{one.name}@{one.version}"


def python_part(one: Locked, carried: set[str]) -> dict[str, Any]:
    """A distribution. Which of its files is installed depends on Python and machine: all their hashes are told."""
    properties = [{"name": "bucketworks:locked-sha256", "value": value} for value in sorted(one.hashes)]
    if one.marker:
        properties.append({"name": "bucketworks:marker", "value": one.marker})
    if one.name in carried:
        properties.append({"name": "bucketworks:carried-in", "value": "deb:bucketworks"})
    return {
        "type": "library",
        "bom-ref": purl(one),
        "name": one.name,
        "version": one.version,
        "scope": "required" if one.name in read_lock("requirements.txt") else "optional",
        "licenses": [{"expression": licence_of(one)}],
        "purl": purl(one),
        "properties": properties,
    }


def browser_part(package: dict[str, str]) -> dict[str, Any]:
    """Code that the console serves, with the digest of the package it comes from."""
    name, version = package["name"], package["version"]
    scope, _, plain = name.rpartition("/")
    locator = "pkg:npm/" + (f"{quote(scope)}/" if scope else "") + f"{plain}@{version}"
    kind, _, digest = package["integrity"].partition("-")
    if kind != "sha512":
        raise ReleaseFailed(f"{name}: its integrity is {kind}, not sha512")
    return {
        "type": "library",
        "bom-ref": locator,
        **({"group": scope} if scope else {}),
        "name": plain,
        "version": version,
        "scope": "required",
        "hashes": [{"alg": "SHA-512", "content": base64.b64decode(digest).hex()}],
        "licenses": [{"expression": browser_licence(name)}],
        "purl": locator,
        "properties": [
            {"name": "bucketworks:unpacked-sha256", "value": package["digest"]},
            {"name": "bucketworks:carried-in", "value": "deb:bucketworks"},
        ],
    }


def carried_by_debian() -> set[str]:
    """Names of what deploy/debian/make_deb.py puts into the package."""
    maker = _maker()
    left_out = {normalized(name) for name in maker.LEFT_OUT}
    extras = {normalized(name) for name in getattr(maker, "CARRIED_EXTRAS", {})}
    return (read_lock("requirements.txt").keys() - left_out) | extras


def _maker() -> ModuleType:
    place = importlib.util.spec_from_file_location("make_deb", ROOT / "deploy/debian/make_deb.py")
    if place is None or place.loader is None:
        raise ReleaseFailed("deploy/debian/make_deb.py cannot be read")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def _direct(about: dict[str, Any]) -> set[str]:
    texts = [*about["dependencies"], *(one for group in about["optional-dependencies"].values() for one in group)]
    return {normalized(text.split(">")[0].split("[")[0].split("<")[0].split("=")[0].strip()) for text in texts}


def main(arguments: Sequence[str] | None = None) -> int:
    about = project()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    place = ROOT / "dist" / f"{about['name']}-{about['version']}.cdx.json"
    parser.add_argument("--output", type=Path, default=place, help=f"the file to write (dist/{place.name})")
    output: Path = parser.parse_args(arguments).output
    try:
        text = json.dumps(bill(), indent=2, ensure_ascii=False) + "\n"
    except ReleaseFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    output.parent.mkdir(parents=True, exist_ok=True)
    under_way = output.with_suffix(".new")
    under_way.write_text(text, encoding="utf-8")
    under_way.replace(output)
    sys.stdout.write(f"{output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
