"""The installed TFLite runtime: ai-edge-litert or tflite-runtime."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from edge_client.contract.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Distribution and module, the better one first: on an int8 MobileNetV2 1.0/160 LiteRT 2.3 took
# 1.7 ms on one x86-64 thread, tflite-runtime 2.14 took 29.5 ms.
_RUNTIMES = (
    ("ai-edge-litert", "ai_edge_litert.interpreter"),
    ("tflite-runtime", "tflite_runtime.interpreter"),
)

# A TFLite file carries this at byte 4; tensorflow/lite/schema/schema.fbs, file_identifier.
_IDENTIFIER = b"TFL3"


class Interpreter(Protocol):
    """The part of the TFLite interpreter that this project uses; the same in both runtimes."""

    def allocate_tensors(self) -> None: ...
    def resize_tensor_input(self, input_index: int, tensor_size: Sequence[int]) -> None: ...
    def get_input_details(self) -> list[dict[str, Any]]: ...
    def get_output_details(self) -> list[dict[str, Any]]: ...
    def set_tensor(self, tensor_index: int, value: NDArray[np.generic]) -> None: ...
    def get_tensor(self, tensor_index: int) -> NDArray[np.generic]: ...
    def invoke(self) -> None: ...


def load_interpreter(
    model: bytes, threads: int = 1, input_shape: tuple[int, ...] | None = None
) -> Interpreter:
    """Load a model and allocate its tensors.

    A corrupt file can crash an old runtime (tflite-runtime 2.14 does not verify the file): load
    untrusted models in a child process.

    Args:
        model: Content of a `.tflite` file.
        threads: Threads of the interpreter, at least 1.
        input_shape: Shape that the first input gets; None: that in the file.
    Raises: DeviceError if no runtime is installed, or with the runtime's reason if it cannot run
        the model.
    """
    if model[4:8] != _IDENTIFIER:
        msg = f"not a TFLite model: {len(model)} bytes without the file identifier TFL3; give a .tflite file"
        raise DeviceError(msg)
    distribution, module = _find_runtime()
    try:
        interpreter = cast("Interpreter", module.Interpreter(model_content=model, num_threads=threads))
        if input_shape is not None:
            interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], input_shape)
        interpreter.allocate_tensors()
    except SystemError as e:
        # How tflite-runtime 2.14, built for NumPy 1, ends under NumPy 2.
        msg = (
            f"{runtime_name(distribution)} does not work with NumPy {np.__version__}; "
            "pip install 'numpy<2', or ai-edge-litert where it has a wheel"
        )
        raise DeviceError(msg) from e
    except (ValueError, RuntimeError, TypeError, MemoryError) as e:
        msg = f"{runtime_name(distribution)} cannot run the model: {_one_line(e)}"
        raise DeviceError(msg) from e
    return interpreter


def runtime_name(distribution: str | None = None) -> str:
    """Name and version of the runtime, e.g. `ai-edge-litert 2.3.0`.

    Raises: DeviceError if none is installed.
    """
    name = distribution or _find_runtime()[0]
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return name  # built from source, or named otherwise (ai-edge-litert-nightly)


def _find_runtime() -> tuple[str, Any]:
    """Return distribution name and module of the first runtime that can be imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its "Created XNNPACK delegate" is no news
    reasons: list[str] = []
    first: Exception | None = None
    for distribution, module in _RUNTIMES:
        try:
            return distribution, importlib.import_module(module)
        except Exception as e:  # noqa: BLE001 - half an upgrade raises whatever it likes
            reasons.append(f"{distribution}: {_one_line(e)}")
            first = first or e
    msg = (
        "no TFLite runtime: pip install ai-edge-litert. It has wheels for 64-bit systems alone: on a 32-bit "
        f"Raspberry Pi, write a 64-bit image to the card ({'; '.join(reasons)})"
    )
    raise DeviceError(msg) from first


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
