"""Self-test of a release in a child process: a model that crashes the runtime kills the child only.

    python -m edge_client.update.selftest [--threads N] [--memory-bytes N] [--latency-budget-ms MS]

reads the release's folder from standard input and prints one JSON verdict. It is started before the
release is downloaded, so that its imports cost no time afterwards. The child classifies each signed picture
with the device's own classifier and compares label and confidence with the signed ones. No version
check replaces this: an old runtime may give wrong answers to a model whose operators it claims
to have (tflite-micro PR#2602).

The child runs an untrusted program, the model. It has no secrets, no network where the kernel allows that, no
new privileges, and may write no file; see `children.confine`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.children import (
    confine,
    describe_exit,
    die_with_parent,
    exit_now,
    is_crash,
    prefer_as_oom_victim,
    self_test_command,
    start,
)
from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.errors import DeviceError, EdgeError, InputError
from edge_client.contract.names import check_name
from edge_client.releases import read_release
from edge_client.update.endings import Ending, find_ending

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    import numpy as np
    from numpy.typing import NDArray

    from edge_client.contract.release import ReleaseDocument, SelfTestCase
    from edge_client.inference.classifier import Classifier, Prediction

VERDICT_LIMIT_BYTES = 65536
# Predictions of each picture before a release counts as too slow.
TIMED_ANSWERS = 5


class Verdict(Document, frozen=True, kw_only=True):
    """Verdict of a self-test, as the child prints it.

    Attributes:
        cases: Pictures that were classified.
        failure: Why the release must not serve; None if it may.
        ending: Name of the `Ending`; empty if it passed.

    No field has a default: half a verdict must not pass.
    """

    cases: int
    failure: str | None
    ending: str


class SelfTestError(DeviceError):
    """A try of a release that failed: this device computes wrong answers with it, cannot run it, or was busy.

    Attributes:
        ending: How it ended.
    """

    def __init__(self, message: str, ending: Ending) -> None:
        super().__init__(message)
        self.ending = ending


class SelfTest:
    """Child process that tries one release; use it in a `with` block."""

    def __init__(
        self,
        *,
        timeout_s: float,
        memory_bytes: int | None = None,
        threads: int = 1,
        latency_budget_ms: float = 0.0,
        started: subprocess.Popen[bytes] | None = None,
    ) -> None:
        """Start the child.

        Args:
            timeout_s: Longest run of the child, from `run` on.
            memory_bytes: Limit on the child's data (RLIMIT_DATA); None: no limit.
            threads: Threads of the interpreter.
            latency_budget_ms: Longest time for one picture; 0: no limit.
            started: The child, if it runs already.
        Raises: SelfTestError if no child can be started.
        """
        self._timeout_s = timeout_s
        try:
            self._child = started or start(
                self_test_command(threads, memory_bytes, latency_budget_ms, timeout_s)
            )
        except OSError as e:
            msg = f"self-test: {sys.executable} cannot be started: {e}"
            raise SelfTestError(msg, Ending.NO_PROCESS) from e

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._child.kill()
        with contextlib.suppress(ValueError):  # its pipes are closed after `run`
            self._child.communicate()

    def run(self, folder: Path) -> int:
        """Try the release in `folder`, a complete and verified one.

        Returns: The number of pictures with the right answer.
        Raises: SelfTestError with the reason if the release fails.
        """
        try:
            output, errors = self._child.communicate(os.fsencode(folder), self._timeout_s)
        except subprocess.TimeoutExpired as e:
            msg = f"self-test: no verdict within {self._timeout_s:g} s ([update] self_test_timeout_s)"
            raise SelfTestError(msg, Ending.TIMED_OUT) from e
        verdict = _read_verdict(self._child.returncode, output, errors)
        if verdict.failure is not None:
            msg = f"self-test: {verdict.failure}"
            raise SelfTestError(msg, Ending.__members__.get(verdict.ending, Ending.UNUSABLE))
        return verdict.cases


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a release must not serve."""

    ending: Ending
    reason: str


def find_failure(
    classifier: Classifier, folder: Path, document: ReleaseDocument, latency_budget_ms: float = 0.0
) -> Failure | None:
    """Return in what the answers differ from the signed ones, or that they are too slow; else None."""
    from edge_client.contract.preprocessing import decode_picture  # noqa: PLC0415 - the parent does without

    if not document.self_test:
        return Failure(Ending.UNUSABLE, "the release has no self-test pictures; publish it with some")
    best_ms = float("inf")
    for case in document.self_test:
        pixels = decode_picture(folder / check_name(case.file, "self-test file"))
        answer = classifier.classify(pixels)
        if failure := compare(case, answer, document.self_test_tolerance):
            return Failure(Ending.WRONG_ANSWERS, failure)
        best_ms = min(best_ms, answer.latency_ms)
        if latency_budget_ms and best_ms > latency_budget_ms:
            best_ms = min(best_ms, time_answers(classifier, pixels))
    slow = judge_latency(best_ms, latency_budget_ms)
    return Failure(Ending.TOO_SLOW, slow) if slow is not None else None


def time_answers(classifier: Classifier, pixels: NDArray[np.uint8]) -> float:
    """Return the shortest latency of several predictions of one picture, in milliseconds.

    The shortest one, over all pictures too, and not the median: another release serves on the same cores
    meanwhile, and a picture may be larger than this camera's. A refusal is for good, so only a release that
    is too slow at its best is refused; probation judges the median on live frames.
    """
    return min(classifier.classify(pixels).latency_ms for _ in range(TIMED_ANSWERS))


def judge_latency(best_ms: float, latency_budget_ms: float) -> str | None:
    """Return the reason if a release is too slow at its best; else None. A budget of 0 is no limit."""
    if latency_budget_ms and best_ms > latency_budget_ms:
        return (
            f"too slow for this device: {best_ms:.1f} ms a picture at best, {latency_budget_ms:g} ms are "
            "allowed ([device] latency_budget_ms); publish a smaller model, or raise it"
        )
    return None


def compare(case: SelfTestCase, answer: Prediction, tolerance: float) -> str | None:
    """Return how the answer differs from the signed one; None if it does not."""
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
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-bytes", type=int)
    parser.add_argument("--latency-budget-ms", type=float, default=0.0)
    parser.add_argument("--cpu-seconds", type=int)
    options = parser.parse_args(arguments)
    prefer_as_oom_victim()
    confine()
    die_with_parent()
    if options.memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (options.memory_bytes, options.memory_bytes))
    # A crash is a possible verdict: no core file of a whole model on an SD card.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Under the memory limit, like the model; and before the release is downloaded.
    from PIL import Image  # noqa: PLC0415 - the parent does without

    from edge_client.inference import classifier, runtime  # noqa: F401, PLC0415 - the parent does without

    Image.preinit()
    with contextlib.suppress(DeviceError):  # the verdict reports it
        runtime.runtime_name()
    folder = sys.stdin.buffer.read()
    # A model runs from here on, and has no file to write. The limit of processor time is for a lost child.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if options.cpu_seconds is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (options.cpu_seconds, options.cpu_seconds))
    if folder:
        verdict = _try(Path(os.fsdecode(folder)), options.threads, options.latency_budget_ms)
        sys.stdout.buffer.write(encode_document(verdict))
    return 0


def _try(folder: Path, threads: int, latency_budget_ms: float) -> Verdict:
    from edge_client.inference.classifier import (  # noqa: PLC0415 - the parent does without
        classifier_from_release,
    )

    try:
        document = read_release(folder)
        classifier = classifier_from_release(folder, threads)
        failure = find_failure(classifier, folder, document, latency_budget_ms)
    except MemoryError as e:
        return _failed(e, "out of memory ([update] self_test_memory_bytes)")
    except (EdgeError, OSError, RuntimeError, ImportError, SystemError) as e:
        return _failed(e, str(e))
    if failure is not None:
        return Verdict(cases=len(document.self_test), failure=failure.reason, ending=failure.ending.name)
    return Verdict(cases=len(document.self_test), failure=None, ending="")


def _failed(error: Exception, reason: str) -> Verdict:
    default = Ending.UNUSABLE if isinstance(error, EdgeError) else Ending.NO_VERDICT
    return Verdict(cases=0, failure=reason, ending=find_ending(error, default).name)


def _read_verdict(returncode: int, stdout: bytes, stderr: bytes) -> Verdict:
    """Return the verdict that the child printed.

    Raises: SelfTestError if it ended without one.
    """
    errors = stderr.decode(errors="replace").strip()[-500:]
    if end := describe_exit(returncode, "the model crashed the runtime"):
        msg = f"self-test: {end}. {errors}".rstrip(". ")
        raise SelfTestError(msg, _ending_of(returncode, errors))
    try:
        if returncode != 0:
            raise InputError("the child failed")
        # Runtimes print to standard output too: the verdict is the last JSON object.
        start = max(stdout.rfind(b"{\n"), 0)
        return decode_document(Verdict, stdout[start:], source="verdict", limit_bytes=VERDICT_LIMIT_BYTES)
    except InputError as e:
        msg = f"self-test: ended with code {returncode} and no verdict: {errors or 'it printed nothing'}"
        raise SelfTestError(msg, _ending_of(returncode, errors)) from e


def _ending_of(returncode: int, errors: str) -> Ending:
    """Return how a child without a verdict ended: by its signal, or by what it said last."""
    if "bad_alloc" in errors or "MemoryError" in errors:
        return Ending.OUT_OF_MEMORY  # C++ aborts then
    if is_crash(returncode):
        return Ending.CRASHED
    if returncode in {-signal.SIGXCPU, -signal.SIGALRM}:
        return Ending.TIMED_OUT
    return Ending.KILLED if returncode < 0 else Ending.NO_VERDICT


if __name__ == "__main__":
    exit_now(main())
