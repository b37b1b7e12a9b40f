"""Fuzz the readers of `tests/fuzz/targets.py` with atheris (libFuzzer), one process each.

    scripts/fuzz [--seconds N] [TARGET ...]
    scripts/fuzz --replay FILE TARGET

What was found is kept below build/fuzz: inputs that reach new code, for the next run, and those that broke
a reader. Exit code 0: nothing broke; 1: something did, and the command that shows it again is printed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

REPOSITORY = Path(__file__).resolve().parents[1]
KEPT = REPOSITORY / "build" / "fuzz"
# Enough for each to try its seeds and some thousands of changes of them.
SECONDS = 5
# A picture of the largest accepted size is 150 MB, and is there more than once while it is decoded.
MEMORY_MB = 1500
LONGEST_RUN_S = 30
LARGEST_INPUT_BYTES = 1 << 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    cut = words.index("--") if "--" in words else len(words)
    options = _parser().parse_args(words[:cut])
    sys.path.insert(0, str(REPOSITORY))
    if options.in_this_process:
        return _fuzz(options.targets[0], words[cut + 1 :])
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415 - after the path

    if unknown := set(options.targets) - TARGETS.keys():
        sys.stderr.write(f"fuzz: no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}\n")
        return 2
    if options.replay:
        if len(options.targets) != 1:
            sys.stderr.write("fuzz: name the one target that FILE is for\n")
            return 2
        taken = TARGETS[options.targets[0]].check(options.replay.read_bytes())
        sys.stdout.write(f"{'taken' if taken else 'refused with a declared error'}\n")
        return 0
    failed = [name for name in options.targets or TARGETS if not _run(name, options.seconds)]
    return 1 if failed else 0


def _run(name: str, seconds: int) -> bool:
    """Fuzz one target in a process of its own; returns whether nothing broke."""
    corpus, broken = KEPT / name / "corpus", KEPT / name / "broken"
    for folder in (corpus, broken):
        folder.mkdir(parents=True, exist_ok=True)
    _write_seeds(name, corpus)
    command = [
        *(sys.executable, __file__, "--in-this-process", name, "--"),
        *(f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY_MB}", f"-timeout={LONGEST_RUN_S}"),
        *(
            f"-max_len={LARGEST_INPUT_BYTES}",
            f"-artifact_prefix={broken}/",
            "-print_final_stats=1",
            str(corpus),
        ),
    ]
    before = set(broken.iterdir())
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    found = sorted(set(broken.iterdir()) - before)
    tries = re.search(r"number_of_executed_units: *(\d+)", done.stdout)
    if done.returncode == 0 and not found:
        sys.stdout.write(f"{name:12} {tries[1] if tries else '?':>9} inputs in {seconds} s, nothing broke\n")
        return True
    where = max(done.stdout.find("=== Uncaught Python exception"), 0)
    sys.stdout.write(f"{name:12} BROKEN\n{done.stdout[where:][-6000:]}\n")
    for path in found:
        sys.stdout.write(f"Show it again: scripts/fuzz --replay {path.relative_to(REPOSITORY)} {name}\n")
    return False


def _write_seeds(name: str, corpus: Path) -> None:
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415 - after the path

    for number, seed in enumerate(TARGETS[name].seeds):
        (corpus / f"seed-{number}").write_bytes(seed)


def _fuzz(name: str, libfuzzer: Sequence[str]) -> int:
    """Never returns: libFuzzer ends the process."""
    import atheris  # type: ignore[import-untyped]  # noqa: PLC0415 - only here is it installed

    sys.modules.pop("tarfile", None)  # to be instrumented as well
    with atheris.instrument_imports(include=["edge_client", "tuf", "securesystemslib", "tarfile", "PIL"]):
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415 - instrumented

    atheris.Setup([name, *libfuzzer], TARGETS[name].check_quietly)
    atheris.Fuzz()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    parser.add_argument("--seconds", type=int, default=SECONDS, help=f"for each target (default {SECONDS})")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="read it once, and show what comes of it")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # Pillow has much to say on broken pictures
    sys.exit(main())
