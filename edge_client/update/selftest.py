"""Run a release's self-test in a child process: a model that crashes the runtime kills the child.

    python -m edge_client.update.selftest FOLDER [--threads N] [--memory-bytes N]

prints one JSON verdict. The child classifies each signed picture with the device's own classifier
and compares label and confidence with what the pipeline saw. No version check replaces this: an old
runtime may give wrong answers to a model whose operators it claims to have (tflite-micro PR#2602).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import edge_client
from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.errors import DeviceError, EdgeError, InputError
from edge_client.contract.names import check_name
from edge_client.contract.preprocessing import decode_picture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_client.contract.release import ReleaseDocument, SelfTestCase
    from edge_client.inference.classifier import Classification, Classifier

VERDICT_LIMIT_BYTES = 65536
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Verdict(Document, frozen=True, kw_only=True):
    """What the child found.

    Attributes:
        cases: Pictures that were classified.
        failure: Why the release must not serve; None if all answers are right.

    Nothing has a default: half a verdict must not read as a pass.
    """

    cases: int
    failure: str | None


class SelfTestError(DeviceError):
    """This device cannot run the release, or not rightly."""


def run_self_test(
    folder: Path, *, timeout_s: float, memory_bytes: int | None = None, threads: int = 1
) -> int:
    """Try the release in `folder` in a child process.

    Args:
        folder: A complete, verified release.
        timeout_s: The child is killed after this.
        memory_bytes: Limit on the child's data (RLIMIT_DATA); None: none.
        threads: Threads of the interpreter.
    Returns: The number of pictures answered right.
    Raises: SelfTestError with the reason if the release fails; DeviceError if no child can be started.
    """
    command = [sys.executable, "-m", "edge_client.update.selftest", str(folder), "--threads", str(threads)]
    if memory_bytes is not None:
        command += ["--memory-bytes", str(memory_bytes)]
    try:
        child = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env=_environment(),
        )
    except subprocess.TimeoutExpired as e:
        msg = f"self-test: no verdict within {timeout_s:g} s ([update] self_test_timeout_s)"
        raise SelfTestError(msg) from e
    except OSError as e:
        msg = f"self-test: {sys.executable} cannot be started: {e}"
        raise DeviceError(msg) from e
    verdict = _read_verdict(child)
    if verdict.failure is not None:
        msg = f"self-test: {verdict.failure}"
        raise SelfTestError(msg)
    return verdict.cases


def find_failure(classifier: Classifier, folder: Path, document: ReleaseDocument) -> str | None:
    """Return why the answers are not those that were signed; None if they are."""
    if not document.self_test:
        return "the release has no self-test pictures; publish it with some"
    for case in document.self_test:
        pixels = decode_picture(folder / check_name(case.file, "self-test file"))
        failure = compare(case, classifier.classify(pixels), document.self_test_tolerance)
        if failure:
            return failure
    return None


def compare(case: SelfTestCase, answer: Classification, tolerance: float) -> str | None:
    """Return how an answer differs from the signed one; None if it does not."""
    if answer.label != case.label:
        return (
            f"{case.file}: answered {answer.label!r} ({answer.confidence:.3f}), the pipeline saw "
            f"{case.label!r} ({case.confidence:.3f}); this runtime computes wrongly, update it"
        )
    if not abs(answer.confidence - case.confidence) <= tolerance:
        return (
            f"{case.file}: {case.label!r} with confidence {answer.confidence:.3f}, the pipeline saw "
            f"{case.confidence:.3f}, more than {tolerance:g} apart; this runtime computes wrongly, update it"
        )
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the child: print a verdict, exit 0 whatever it is."""
    parser = argparse.ArgumentParser(prog="python -m edge_client.update.selftest", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-bytes", type=int)
    options = parser.parse_args(arguments)
    _die_with_parent()
    _be_first_to_go()
    if options.memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (options.memory_bytes, options.memory_bytes))
    # A crash is an expected answer here: no core file of a whole model on an SD card.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.buffer.write(encode_document(_try(options.folder, options.threads)))
    return 0


def _try(folder: Path, threads: int) -> Verdict:
    from edge_client.inference.classifier import (  # noqa: PLC0415 - the parent does not need it
        classifier_from_release,
        read_release,
    )

    try:
        document = read_release(folder)
        classifier = classifier_from_release(folder, threads)
        return Verdict(cases=len(document.self_test), failure=find_failure(classifier, folder, document))
    except EdgeError as e:
        return Verdict(cases=0, failure=str(e))
    except MemoryError:
        return Verdict(cases=0, failure="out of memory ([update] self_test_memory_bytes)")


def _read_verdict(child: subprocess.CompletedProcess[bytes]) -> Verdict:
    """Judge how the child ended.

    Raises: SelfTestError if it did not come to a verdict.
    """
    said = child.stderr.decode(errors="replace").strip()[-500:]
    if child.returncode < 0:
        with contextlib.suppress(ValueError):
            msg = f"self-test: {_describe_death(signal.Signals(-child.returncode))}. {said}".strip()
            raise SelfTestError(msg)
    try:
        if child.returncode != 0:
            raise InputError("the child failed")
        # Runtimes print to standard output too: the verdict is the last object there.
        start = child.stdout.rfind(b"{\n")
        return decode_document(
            Verdict, child.stdout[max(start, 0) :], source="verdict", limit_bytes=VERDICT_LIMIT_BYTES
        )
    except InputError as e:
        msg = f"self-test: ended with code {child.returncode} and no verdict: {said or 'it said nothing'}"
        raise SelfTestError(msg) from e


def _describe_death(number: signal.Signals) -> str:
    if number == signal.SIGKILL:
        return (
            "the child was killed (SIGKILL), as the kernel does where memory runs out; free some, or publish "
            "a smaller model"
        )
    return f"the model crashed the runtime ({number.name})"


def _environment() -> dict[str, str]:
    """Let the child find this package, and keep numerical libraries from reserving memory for each core."""
    package_root = str(Path(edge_client.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _die_with_parent() -> None:
    """Ask Linux to kill this child when the daemon dies, however it dies."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _be_first_to_go() -> None:
    """Ask Linux to take this child, and not the daemon that serves, where memory runs out (proc(5))."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


if __name__ == "__main__":
    sys.exit(main())
