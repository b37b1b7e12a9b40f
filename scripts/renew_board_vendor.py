"""Fetches the npm packages whose files lie in this repository, and writes which they are.

    scripts/renew-board-vendor                      the versions that the lists name, again
    scripts/renew-board-vendor htmx.org@2.0.11      another version of one
    scripts/renew-board-vendor --check              compares the files with the lists; needs no network

Fetching needs `npm`. Each archive must have the digest that the registry states for that version.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
BOARD = REPOSITORY / "luigi_tasks" / "board" / "static" / "vendor"
TESTS = REPOSITORY / "tests" / "vendor"
LIST = "README.md"

_HEAD = {
    BOARD: "Scripts of others that the board's pages load: from the board itself, never from another host.",
    TESTS: "Scripts of others that the tests load into pages; no part of the package.",
}
_PAGE = """\
# Vendored

{} Written by
`scripts/renew-board-vendor`, which fetches them, and checked by
`scripts/renew-board-vendor --check`. Nothing here is edited by hand.

| file | package of npm | version | licence | SHA-256 |
| --- | --- | --- | --- | --- |
{}
"""
_WAY_OUT = "run scripts/renew-board-vendor"
_ROW = re.compile(
    r"^\| `(?P<file>[^`]+)` \| (?P<name>\S+) \| (?P<version>\S+) \| (?P<licence>\S+) \| `(?P<digest>\w+)` \|$"
)


@dataclasses.dataclass(frozen=True)
class Package:
    """A package of npm.

    Attributes:
        name: Its name there.
        folder: Where its files lie here.
        files: File in the package -> its name here; licences included.
    """

    name: str
    folder: Path
    files: dict[str, str]


PACKAGES = (
    Package("htmx.org", BOARD, {"dist/htmx.min.js": "htmx.min.js", "LICENSE": "htmx.LICENSE"}),
    Package(
        "uplot",
        BOARD,
        {
            "dist/uPlot.iife.min.js": "uPlot.iife.min.js",
            "dist/uPlot.min.css": "uPlot.min.css",
            "LICENSE": "uPlot.LICENSE",
        },
    ),
    Package(
        "axe-core",
        TESTS,
        {
            "axe.min.js": "axe.min.js",
            "LICENSE": "axe.LICENSE",
            "LICENSE-3RD-PARTY.txt": "axe.LICENSE-3RD-PARTY.txt",
        },
    ),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a list: a file, and where it is from."""

    file: str
    name: str
    version: str
    licence: str
    digest: str


class VendorError(Exception):
    """A file is not what the list or the registry says."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version", nargs="*", help="NAME@VERSION; others keep the version of the list")
    parser.add_argument(
        "--check", action="store_true", help="compare the files with the lists, and fetch none"
    )
    options = parser.parse_args(arguments)
    try:
        if not options.check:
            renew(dict(one.rpartition("@")[::2] for one in options.version))
        faults = check()
    except VendorError as e:
        faults = [str(e)]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def check(folders: tuple[Path, ...] = (BOARD, TESTS)) -> list[str]:
    """Return what differs between the files and their lists, in words; empty: nothing."""
    faults = []
    for folder in folders:
        rows = {row.file: row for row in read_list(folder)}
        present = {one.name for one in folder.iterdir()} - {LIST}
        faults += [f"{folder / name}: in no list; {_WAY_OUT}" for name in present - rows.keys()]
        faults += [f"{folder / name}: missing; {_WAY_OUT}" for name in rows.keys() - present]
        for name in rows.keys() & present:
            digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            if digest != rows[name].digest:
                faults.append(f"{folder / name}: SHA-256 {digest}, not {rows[name].digest}; {_WAY_OUT}")
    for package in PACKAGES:
        listed = {row.file for row in read_list(package.folder) if row.name == package.name}
        if package.folder in folders and listed != set(package.files.values()):
            faults.append(f"{package.folder / LIST}: other files of {package.name} than asked; {_WAY_OUT}")
    return sorted(faults)


def read_list(folder: Path) -> list[Row]:
    """Return the rows of a folder's list."""
    try:
        lines = (folder / LIST).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [Row(**found.groupdict()) for line in lines if (found := _ROW.match(line))]


def renew(wanted: dict[str, str]) -> None:
    """Fetch all packages, then write their files and lists."""
    known = {one.name for one in PACKAGES}
    if unknown := wanted.keys() - known:
        msg = f"{', '.join(sorted(unknown))}: not among {', '.join(sorted(known))}"
        raise VendorError(msg)
    fetched: dict[Path, list[tuple[Row, bytes]]] = {BOARD: [], TESTS: []}
    for package in PACKAGES:
        listed = [row.version for row in read_list(package.folder) if row.name == package.name]
        fetched[package.folder] += fetch(package, wanted.get(package.name) or next(iter(listed), "latest"))
    for folder, its in fetched.items():
        folder.mkdir(parents=True, exist_ok=True)
        for row, data in its:
            (folder / row.file).write_bytes(data)
        lines = (
            f"| `{row.file}` | {row.name} | {row.version} | {row.licence} | `{row.digest}` |"
            for row, _ in its
        )
        (folder / LIST).write_text(_PAGE.format(_HEAD[folder], "\n".join(lines)))


def fetch(package: Package, version: str) -> list[tuple[Row, bytes]]:
    """Return the rows and contents of a package's files."""
    with tempfile.TemporaryDirectory() as scratch:
        asked = f"{package.name}@{version}"
        told = json.loads(_npm("view", asked, "version", "license", "dist.integrity", "--json", cwd=scratch))
        exact = f"{package.name}@{told['version']}"
        archive = Path(scratch, json.loads(_npm("pack", exact, "--json", cwd=scratch))[0]["filename"])
        integrity = f"sha512-{base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()}"
        if integrity != told["dist.integrity"]:
            msg = f"{exact}: the archive is {integrity}; the registry says {told['dist.integrity']}"
            raise VendorError(msg)
        fetched = []
        with tarfile.open(archive) as files:
            for inside, name in package.files.items():
                file = files.extractfile(f"package/{inside}")
                assert file is not None, inside  # noqa: S101 - for folders only
                data = file.read()
                digest = hashlib.sha256(data).hexdigest()
                fetched.append((Row(name, package.name, told["version"], told["license"], digest), data))
    print(f"{exact}: {told['license']}, {len(fetched)} files for {package.folder.relative_to(REPOSITORY)}")
    return fetched


def _npm(*arguments: str, cwd: str) -> str:
    try:
        done = subprocess.run(["npm", *arguments], cwd=cwd, check=False, capture_output=True, text=True)  # noqa: S607 - the one of the user's path
    except FileNotFoundError as e:
        raise VendorError("npm is not installed: it fetches the packages") from e
    if done.returncode:
        msg = f"npm {' '.join(arguments)}: {done.stderr.strip()}"
        raise VendorError(msg)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
