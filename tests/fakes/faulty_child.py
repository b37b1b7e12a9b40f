"""Children of a device that fail once, by a module that Python runs at each start."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Python imports it before anything else, in every process whose PYTHONPATH has its folder. It stands for the
# kernel and the disk, which a test cannot make fail for one process: the signals and errors are real.
_SITECUSTOMIZE = """
import ctypes, errno, os, pathlib, signal, sys, threading
HERE = pathlib.Path(__file__).parent
def fail_to_read(path):
    raise OSError(errno.EIO, "Input/output error", str(path))
def refuse_threads(*_):
    raise RuntimeError("can't start new thread")
def run_out(*_):
    raise MemoryError
def tell(*_):
    import json, socket
    from edge_client.contract.errors import InputError
    status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    try:
        socket.create_connection(("127.0.0.1", int(os.environ["PYTHON_TEST_PORT"])), 1.0)
        network = "reached"
    except OSError as e:
        network = errno.errorcode[e.errno]
    try:
        (HERE / "written").write_text("x")
        file = "written"
    except OSError as e:
        file = errno.errorcode[e.errno]
    raise InputError(json.dumps({
        "environment": dict(os.environ), "folder": os.getcwd(), "network": network, "file": file,
        "privileges": status["NoNewPrivs"].strip(), "capabilities": int(status["CapEff"], 16),
        "descriptors": sorted(map(int, os.listdir("/proc/self/fd"))),
    }))
def crash_in_model():
    import importlib.util
    runtimes = [one for one in ("ai_edge_litert", "tflite_runtime") if importlib.util.find_spec(one)]
    interpreter = importlib.import_module(runtimes[0] + ".interpreter").Interpreter
    invoke = interpreter.invoke
    def run(self):
        if (HERE / "crash").exists() and threading.current_thread().name == "frames":
            (HERE / "crash").unlink()
            ctypes.string_at(0)
        return invoke(self)
    interpreter.invoke = run
try:
    if "run" in sys.orig_argv and (HERE / "models_crash").exists():
        crash_in_model()
    # The child of an update check has the command of the self-test among its arguments.
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv else ""
    if module == "edge_client.update.selftest":
        fault = (HERE / "fault").read_text()
        (HERE / "fault").unlink()
        if fault.isdigit():
            os.kill(os.getpid(), int(fault))
            threading.Event().wait()  # stopped, if it comes back
        elif fault == "EIO":
            pathlib.Path.read_bytes = fail_to_read
        elif fault == "thread":
            import edge_client.inference.classifier as classifier
            classifier.Classifier.classify = refuse_threads
        elif fault == "memory":
            import edge_client.inference.classifier as classifier
            classifier.Classifier.classify = run_out
        elif fault == "runtime":
            sys.modules["ai_edge_litert"] = sys.modules["tflite_runtime"] = None
        elif fault == "ends":
            os._exit(1)
        elif fault == "tell":
            import edge_client.inference.classifier as classifier
            classifier.Classifier.classify = tell
except FileNotFoundError:
    pass
"""


class FaultyChild:
    """Makes the next self-test fail; those after it run as they are."""

    def __init__(self, folder: Path) -> None:
        """Write the module; the test puts `folder` on PYTHONPATH."""
        folder.mkdir()
        self.folder = folder
        (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)

    def fail_next(self, fault: str | int) -> None:
        """Let the next self-test fail: by a signal's number, EIO, thread, memory, runtime or ends.

        With `tell` its failure says what the child may do, as JSON.
        """
        (self.folder / "fault").write_text(str(int(fault) if isinstance(fault, int) else fault))

    def let_models_crash(self) -> None:
        """Let a daemon that starts from now on crash inside its model when `crash_next` says so."""
        (self.folder / "models_crash").touch()

    def crash_next(self) -> None:
        """Let the runtime of the daemon crash at the next frame, inside the model."""
        (self.folder / "crash").touch()

    @property
    def happened(self) -> bool:
        """Whether the next self-test has run."""
        return not (self.folder / "fault").exists()
