"""Trial of a model file in a child process: a file that crashes the runtime kills the child only.

    python -m edge_client.serving.model_trial

reads what to load from standard input, classifies a grey picture and prints one JSON verdict. A damaged file
can crash an old runtime, or let it compute for ever. The child has no secrets, no network where the kernel
allows that, no new privileges, and may write no file; see `children.confine`.
"""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.children import (
    confine,
    describe_exit,
    die_with_parent,
    exit_now,
    prefer_as_oom_victim,
    python_command,
    start,
)
from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.errors import DeviceError, EdgeError, InputError, SettingsError
from edge_client.settings.own_model import ModelOptions

if TYPE_CHECKING:
    from typing import Self

    from edge_client.inference.own_model import OwnModel
    from edge_client.settings.file import Settings

_LIMIT_BYTES = 65536
# The longest first inference on a slow board, and the imports of the child; systemd waits 90 s for a start.
TRIAL_S = 60.0


class ModelOrder(Document, frozen=True, kw_only=True):
    """What the child is to load; paths are absolute.

    Attributes:
        model: The model file.
        labels: Labels file; empty: the labels in the model.
        mean: See `ModelOptions`.
        std: See `ModelOptions`.
        input_size: See `ModelOptions`.
        names: See `ModelOptions`.
        threads: Threads of the interpreter.
        memory_bytes: Limit on the child's memory; 0: none.
    """

    model: str
    labels: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    input_size: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    threads: int = 1
    memory_bytes: int = 0

    def options(self) -> ModelOptions:
        """Return the options of the model."""
        labels = Path(self.labels) if self.labels else None
        return ModelOptions(labels, self.mean, self.std, self.input_size, self.names)


class ModelVerdict(Document, frozen=True, kw_only=True):
    """Verdict on a model file, as the child prints it.

    Attributes:
        failure: Why it cannot serve; None if it can.
        is_input_fault: Whether the file is the reason, and not this device.
    """

    failure: str | None
    is_input_fault: bool


class ModelTrial:
    """Child process that loads a model file and classifies a grey picture; use it in a `with` block."""

    def __init__(
        self,
        model: Path,
        options: ModelOptions,
        threads: int,
        *,
        timeout_s: float = TRIAL_S,
        memory_bytes: int = 0,
    ) -> None:
        """Start the child; it works while this process imports what it needs itself.

        Args:
            model: The model file.
            options: What the file does not say.
            threads: Threads of the interpreter.
            timeout_s: Longest run of the child, from `finish` on.
            memory_bytes: Limit on the child's memory; 0: none.
        Raises: DeviceError if no child can be started.
        """
        self._model, self._timeout_s = model, timeout_s
        order = ModelOrder(
            model=str(model.absolute()),
            labels="" if options.labels is None else str(options.labels.absolute()),
            mean=options.mean,
            std=options.std,
            input_size=options.input_size,
            names=options.names,
            threads=threads,
            memory_bytes=memory_bytes,
        )
        try:
            self._child = start(python_command("edge_client.serving.model_trial"))
        except OSError as e:
            msg = f"{model}: {sys.executable} cannot be started to try it: {e}; free memory"
            raise DeviceError(msg) from e
        if self._child.stdin is not None:
            with contextlib.suppress(OSError), self._child.stdin as stdin:  # `finish` judges an early end
                stdin.write(encode_document(order))
            self._child.stdin = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._child.kill()
        with contextlib.suppress(ValueError):  # its pipes are closed after `finish`
            self._child.communicate()

    def finish(self) -> None:
        """Wait for the verdict.

        Raises: InputError or DeviceError, as `open_own_model`; also if the child crashed or hangs.
        """
        try:
            output, errors = self._child.communicate(timeout=self._timeout_s)
        except subprocess.TimeoutExpired as e:
            msg = f"{self._model}: gave no answer within {self._timeout_s:g} s; give a smaller model"
            raise DeviceError(msg) from e
        _judge(self._model, self._child.returncode, output, errors)


def open_tried(settings: Settings) -> OwnModel:
    """Load the model file of the settings, after a trial in another process.

    Raises: SettingsError if the file, or what the settings say of it, is the reason; DeviceError.
    """
    from edge_client.inference.other_formats import is_tflite, read_model_file  # noqa: PLC0415
    from edge_client.inference.own_model import open_own_model  # noqa: PLC0415 - the child imports it later

    device, update = settings.device, settings.update
    model, options = device.model_file(), device.model_options()
    try:
        if not is_tflite(read_model_file(model)):
            msg = f"[device] model: {model}: not a TFLite model; give a .tflite image classifier"
            raise SettingsError(msg)
        with ModelTrial(
            model,
            options,
            device.threads,
            timeout_s=min(update.self_test_timeout_s, TRIAL_S),
            memory_bytes=update.self_test_memory_bytes,
        ) as trial:
            trial.finish()
        return open_own_model(model, options, device.threads)
    except InputError as e:
        msg = f"[device] model: {e}"
        raise SettingsError(msg) from e


def _judge(model: Path, returncode: int, output: bytes, errors: bytes) -> None:
    """Raise the error that the child's end means; do nothing if it passed."""
    said = " ".join(errors.decode(errors="replace").split())[-300:]
    if end := describe_exit(returncode, "the model crashed the runtime"):
        msg = f"{model}: tried in a process of its own: {end}; download or convert it again. {said}".rstrip(
            ". "
        )
        raise DeviceError(msg)
    try:
        # Runtimes print to standard output too: the verdict is the last JSON object.
        start_at = max(output.rfind(b"{\n"), 0)
        verdict = decode_document(ModelVerdict, output[start_at:], source="verdict", limit_bytes=_LIMIT_BYTES)
    except InputError as e:
        msg = f"{model}: tried in a process of its own: no verdict ({said or 'it printed nothing'})"
        raise DeviceError(msg) from e
    if verdict.failure is not None:
        raise InputError(verdict.failure) if verdict.is_input_fault else DeviceError(verdict.failure)


def main() -> int:
    """Run the child: print a verdict, exit 0 whatever it is."""
    prefer_as_oom_victim()
    confine()
    die_with_parent()
    # A crash is a possible verdict: no core file of a whole model on an SD card.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    data = sys.stdin.buffer.read()
    if not data:
        return 1  # the daemon was killed while this process started
    order = decode_document(ModelOrder, data, source="order", limit_bytes=_LIMIT_BYTES)
    if order.memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (order.memory_bytes, order.memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.stdout.buffer.write(encode_document(_try(order)))
    return 0


def _try(order: ModelOrder) -> ModelVerdict:
    from edge_client.inference.own_model import open_own_model  # noqa: PLC0415 - the parent does without

    try:
        open_own_model(Path(order.model), order.options(), order.threads)
    except EdgeError as e:
        return ModelVerdict(failure=str(e), is_input_fault=isinstance(e, InputError))
    except MemoryError:
        return ModelVerdict(
            failure=f"{order.model}: out of memory; give a smaller model", is_input_fault=False
        )
    except (OSError, RuntimeError, ImportError, SystemError) as e:
        return ModelVerdict(failure=f"{order.model}: {type(e).__name__}: {e}", is_input_fault=False)
    return ModelVerdict(failure=None, is_input_fault=False)


if __name__ == "__main__":
    exit_now(main())
