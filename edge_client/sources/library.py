"""Import of the libraries of cameras, which are not of pip alone: any failure of theirs has a way out.

OpenCV and picamera2 load libraries of the system and parts built for one NumPy. What they raise where these
do not fit is of any kind (ImportError, AttributeError, ValueError, SystemError), and what NumPy writes to
standard error says more than the exception.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# NumPy's words, and Cython's, where a library was built for another NumPy.
NUMPY_MISMATCH = (
    "compiled using numpy",
    "compiled against",
    "_array_api",
    "multiarray",
    "size changed, may indicate binary",
)


def import_library(
    name: str, what: str, install: str, remedies: Sequence[tuple[Sequence[str], str]], otherwise: str
) -> Any:  # noqa: ANN401 - these libraries have no types
    """Import a library.

    Args:
        name: Module to import.
        what: What needs it, for the message.
        install: How it is installed.
        remedies: Parts of an error's text, in lower case, and the way out; the first that fits is told.
        otherwise: Way out for all other errors.
    Raises: DeviceError, whatever the import raised; importing may be tried again.
    """
    written = io.StringIO()
    try:
        importlib.invalidate_caches()  # it may have been installed since the last try
        with _undone_on_failure(name), contextlib.redirect_stderr(written):
            return importlib.import_module(name)
    except (Exception, SystemExit) as e:
        found = f"{type(e).__name__}: {e}"
        text = f"{found} {written.getvalue()}".lower()
        fitting = (remedy for parts, remedy in remedies if any(part in text for part in parts))
        is_absent = isinstance(e, ModuleNotFoundError) and e.name == name
        way_out = install if is_absent else next(fitting, otherwise)
        msg = f"{what}: {_first_line(found)}; {way_out}"
        raise DeviceError(msg) from e


@contextlib.contextmanager
def _undone_on_failure(name: str) -> Iterator[None]:
    """Leave nothing of an import that fails.

    What OpenCV leaves behind, in `sys` and in the path, makes each later try fail for another reason.
    """
    before, path = set(sys.modules), list(sys.path)
    try:
        yield
    except BaseException:
        for module in set(sys.modules) - before:
            if module.partition(".")[0] == name:
                del sys.modules[module]
        sys.path[:] = path
        if hasattr(sys, "OpenCV_LOADER"):
            del sys.OpenCV_LOADER
        raise


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), text)
