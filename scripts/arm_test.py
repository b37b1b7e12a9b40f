"""Try the device under Debian for 64-bit Arm on this machine, which is x86-64, by an emulator.

Makes a user land from Debian's packages (kept in a folder, so that the next call is quick), installs the
working tree's device in it from Arm wheels with its own pip, and tries there:

1. the installation: `pip check`, its size, and whether a Raspberry Pi 5 can load it (pages of 16 KiB);
2. `edge-client classify`, against the answers of this machine;
3. the device's tests whose answer depends on the runtime;
4. a whole update: the real pipeline here publishes twice, a daemon there follows.

Needs apt and qemu's user-mode emulator (apt-get install qemu-user-static); no root, no mounts.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from arm.answers import compare_answers
from arm.boards import BOARDS, VARIANTS
from arm.installation import PAGE_BYTES, Installed, install
from arm.update import WholeUpdate
from arm.userland import ArmError, UserLand

REPOSITORY = Path(__file__).resolve().parents[1]
# Under emulation, Python is about ten times slower; and both cores may be busy.
PATIENCE = 10
# Where what a processor computes decides.
QUICK_TESTS = ("inference", "contract", "commands/test_classify.py")
# Commands, settings and the self-test's child too. Left out are `daemon`, whose place the whole update takes,
# and `serving`: swaps and statistics by the thousand, which take an hour and depend on no instruction.
TESTS = ("inference", "contract", "commands", "settings", "update/test_selftest.py")
MARKS = "runtime and not slow and not native"


def main() -> int:
    """Try each variant; exit code 0 when everything is as it should be."""
    options = parse_arguments()
    # For this process alone: the device there shall import what was installed, and its pip shall not take the
    # checkout, with what setuptools wrote beside it, for that.
    os.environ.pop("PYTHONPATH", None)
    signal.signal(signal.SIGTERM, lambda _n, _f: sys.exit(143))  # unwinds, so that no service is left
    largest, passed = 0.0, 0
    try:
        for name in options.variants:
            board = BOARDS[options.board or VARIANTS[name].board]
            land = UserLand(name, VARIANTS[name], board, options.root)
            with land.locked():
                difference, count = try_variant(land, quick=options.quick)
            largest, passed = max(largest, difference), passed + count
    except ArmError as e:
        print(f"test-arm: {e}", file=sys.stderr)
        return 1
    print(f"== Arm: {passed} tests passed; largest difference of a confidence {largest:.4f}", flush=True)
    return 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/test-arm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "variants",
        nargs="*",
        metavar="VARIANT",
        help=f"of {', '.join(VARIANTS)} (default: all)",
    )
    parser.add_argument("--quick", action="store_true", help="fewer of the device's tests")
    parser.add_argument(
        "--board", choices=BOARDS, help="emulated processor (default: bookworm pi4, trixie pi5)"
    )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--root", type=Path, default=cache / "edge-fleet/arm", help="default: %(default)s")
    options = parser.parse_args()
    if unknown := [name for name in options.variants if name not in VARIANTS]:
        parser.error(f"{unknown[0]}: not one of {', '.join(VARIANTS)}")
    if platform.machine() != "x86_64":
        parser.error(
            f"this machine is {platform.machine()}: run scripts/test on it, nothing is to be emulated"
        )
    options.variants = options.variants or [*VARIANTS]
    options.root = options.root.resolve()
    return options


def try_variant(land: UserLand, *, quick: bool) -> tuple[float, int]:
    """Try one user land; return the largest difference of a confidence, and how many tests passed."""
    clock = Clock(land.name)
    clock.say("made" if land.make() else "kept from an earlier run", f"in {land.root}")
    installed = install(land)
    show(land, installed)
    clock.say("installed")
    with tempfile.TemporaryDirectory(prefix="edge-arm-") as folder:
        answers = compare_answers(land, Path(folder))
    print(f"  classify: {answers.pictures} answers compared, the largest difference {answers.largest:.4f}")
    for line in (f"at {answers.where}", *answers.other_labels):
        print(f"    {line}")
    answers.check()
    clock.say("answers compared")
    with tempfile.TemporaryDirectory(prefix="edge-arm-") as folder:
        update = WholeUpdate(land, Path(folder))
        for line in update.run():
            print(f"  {line}")
    of_releases = update.comparison
    print(
        f"  the daemon: {of_releases.pictures} answers compared, the largest difference "
        f"{of_releases.largest:.4f}"
    )
    clock.say("updated")
    passed = run_tests(land, quick=quick)
    clock.say(f"{passed} tests passed")
    return max(answers.largest, of_releases.largest), passed


def show(land: UserLand, installed: Installed) -> None:
    """Print the environment; raise ArmError if it is not sound."""
    facts = installed.facts
    emulator = subprocess.run([land.emulator, "--version"], capture_output=True, text=True, check=True).stdout
    packages = facts["packages"]
    print(f"  {facts['os']}, {facts['machine']}, glibc {facts['glibc']}, Python {facts['python']}")
    print(f"  {emulator.splitlines()[0]}, processor {land.board.processor} ({land.board.name})")
    listed = packages.items() if isinstance(packages, dict) else ()
    print("  " + ", ".join([str(facts["runtime"]), *(f"{name} {version}" for name, version in listed)]))
    print(
        f"  device and what it needs: {installed.size_bytes / 1e6:.0f} MB; of {installed.shared_objects} "
        f"compiled files {len(installed.misaligned)} that pages of {PAGE_BYTES // 1024} KiB cannot load; "
        f"pip check: {installed.broken or 'no broken requirements'}",
        flush=True,
    )
    if installed.misaligned or installed.broken:
        msg = f"{land.name}: {installed.broken} {', '.join(installed.misaligned)}"
        raise ArmError(msg)


def run_tests(land: UserLand, *, quick: bool) -> int:
    """Run the device's tests there, and return how many passed."""
    folders = [f"tests/device/{name}" for name in (QUICK_TESTS if quick else TESTS)]
    command = [str(land.python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "-m", MARKS]
    # Compiled once, apart from the working tree's own: under emulation each child would compile for seconds.
    compiled = {"PYTHONPYCACHEPREFIX": str(land.folder / "pycache")}
    process = subprocess.Popen(
        [*command, *folders],
        cwd=REPOSITORY,
        env={**os.environ, **compiled, "EDGE_TEST_PATIENCE": str(PATIENCE)},
        stdout=subprocess.PIPE,
        text=True,
    )
    output = ""
    try:
        for line in process.stdout or ():
            print(f"  {line}", end="", flush=True)
            output += line
    except BaseException:
        process.terminate()
        raise
    if process.wait() != 0:
        msg = f"{land.name}: the device's tests ended with {process.returncode}"
        raise ArmError(msg)
    found = re.search(r"(\d+) passed", output)
    return int(found[1]) if found else 0


class Clock:
    """Says how long each part took."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last = time.monotonic()

    def say(self, what: str, more: str = "") -> None:
        """Print what was done since the last call."""
        now = time.monotonic()
        print(f"== {self._name}: {what} in {now - self._last:.0f} s {more}".rstrip(), flush=True)
        self._last = now


if __name__ == "__main__":
    sys.exit(main())
