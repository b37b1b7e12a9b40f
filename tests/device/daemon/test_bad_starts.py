"""A start that fails for a reason of the machine costs no release: the real daemon, without a network.

Each case takes a device with two releases whose store is gone, and lets the machine fail. Nothing may leave
the disk, nothing may be refused; once the cause is gone, the newest release serves: in the same process where
that can be, else after the next start.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
from typing import TYPE_CHECKING

import msgspec
import pytest
from local_services import wait_until

from edge_client.contract.documents import encode_document
from tests.fakes.bad_disk import flip
from tests.fakes.device_daemon import LIMIT_S, DaemonUnderTest, Watcher, assert_answers
from tests.fakes.tiny_release import tiny_release
from tests.fakes.tuf_repository import TufRepository
from tests.fault_table import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

A, B = (tiny_release(bias)[0].release for bias in (0, 1))

# Runs at the start of each process of the device: the machine fails while the file $BAD is there.
SHIM = """
import builtins, errno, importlib.abc, io, os, sys, types

def bad():
    return os.path.exists(os.environ["BAD"])

class Fails(importlib.abc.MetaPathFinder):
    def __init__(self, *names):
        self.names = names
    def find_spec(self, name, path, target=None):
        if name in self.names and bad():
            self.fail(name)
        return None
    def fail(self, name):
        raise ImportError("No module named " + name)

RUNTIMES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")

def fail_import(names, error):
    finder = Fails(*names)
    def fail(name):
        raise error
    finder.fail = fail
    sys.meta_path.insert(0, finder)

def fail_reads(number, *parts):
    real_open, real_os_open = io.open, os.open
    def broken(file):
        path = os.fsdecode(file) if not isinstance(file, int) else ""
        return bad() and any(part in path for part in parts)
    def open_(file, mode="r", *rest, **more):
        if "r" in mode and broken(file):
            raise OSError(number, os.strerror(number), str(file))
        return real_open(file, mode, *rest, **more)
    builtins.open = io.open = open_

def fake_runtime(error):
    # As a runtime that was built for another NumPy: it is imported, and stays as it is in this process.
    if bad():
        module = types.ModuleType("ai_edge_litert.interpreter")
        def interpreter(**_options):
            raise error
        module.Interpreter = interpreter
        sys.modules["ai_edge_litert"] = types.ModuleType("ai_edge_litert")
        sys.modules["ai_edge_litert.interpreter"] = module

def patch_interpreter(error):
    import importlib
    real = importlib.import_module
    def import_module(name, *rest):
        module = real(name, *rest)
        if name in RUNTIMES and not hasattr(module, "patched"):
            allocate = module.Interpreter.allocate_tensors
            def fail(self):
                if bad():
                    raise error
                return allocate(self)
            module.Interpreter.allocate_tensors, module.patched = fail, True
        return module
    importlib.import_module = import_module
"""


@dataclasses.dataclass(frozen=True)
class Cause:
    """A reason of the machine.

    Attributes:
        code: What breaks, after `SHIM`.
        told: Words of the status, or of the log if the daemon ends.
        heals: Whether the same process serves once the cause is gone.
    """

    code: str
    told: str
    heals: bool = True


CAUSES = {
    "no runtime": Cause("fail_import(RUNTIMES, ImportError('no such module'))", "no TFLite runtime"),
    "half an upgrade of the runtime": Cause(
        "fail_import(RUNTIMES, AttributeError('_ARRAY_API not found'))", "_ARRAY_API not found"
    ),
    "a runtime that does not fit NumPy": Cause(
        "fake_runtime(SystemError('initialization failed'))", "does not work with NumPy"
    ),
    "a runtime that raises what it likes": Cause(
        "patch_interpreter(AttributeError('no attribute'))", "AttributeError: no attribute"
    ),
    "out of memory": Cause("patch_interpreter(MemoryError('out of memory'))", "out of memory"),
    "EIO on the slots": Cause("fail_reads(errno.EIO, '/slots/')", "Input/output error"),
    "EIO on all of the state": Cause("fail_reads(errno.EIO, '/state/')", "Input/output error"),
    "no permission to read the slots": Cause("fail_reads(errno.EACCES, '/slots/')", "Permission denied"),
    "another preprocessing (package downgrade)": Cause(
        "if bad():\n import edge_client.contract.preprocessing as p, edge_client.contract.release as r\n"
        " p.PREPROCESSING_ID = r.PREPROCESSING_ID = 'of-an-older-version'",
        "of-an-older-version",
        heals=False,
    ),
    "a newer schema (package downgrade)": Cause(
        "if bad():\n import edge_client.contract.release as r\n r.ReleaseDocument.newest_schema = 0",
        "this version reads up to 0",
        heals=False,
    ),
    "NumPy cannot be imported": Cause(
        "fail_import(['numpy'], ImportError('numpy was upgraded by half'))", "upgraded by half", heals=False
    ),
    "no thread can be started": Cause(
        "if bad():\n import threading\n"
        ' def start(self):\n  raise RuntimeError("can\'t start new thread")\n'
        " threading.Thread.start = start",
        "start new thread",
        heals=False,
    ),
}


# Tried in every run of the tests, the others with --every-fault.
USUAL = {
    "no runtime",
    "a runtime that does not fit NumPy",
    "out of memory",
    "EIO on all of the state",
    "another preprocessing (package downgrade)",
}


class BadMachine:
    """A daemon on a machine that fails while the file `bad` is there."""

    def __init__(self, daemon: DaemonUnderTest, folder: Path) -> None:
        self.daemon = daemon
        self.bad = folder / "bad"
        self._site = folder / "site"
        self._site.mkdir()

    def break_by(self, cause: Cause, monkeypatch: pytest.MonkeyPatch) -> None:
        (self._site / "sitecustomize.py").write_text(f"{SHIM}\n{cause.code}\n")
        monkeypatch.setenv("BAD", str(self.bad))
        monkeypatch.setenv("PYTHONPATH", f"{self._site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        self.bad.touch()

    def mend(self) -> None:
        self.bad.unlink()


@pytest.fixture(scope="module")
def published() -> Iterator[TufRepository]:
    with TufRepository() as repository:
        yield repository


@pytest.fixture(scope="module")
def two_releases(published, tmp_path_factory, mqtt_broker) -> Path:
    """State folder of a device that took two releases, the second one after the first."""
    daemon = DaemonUnderTest(tmp_path_factory.mktemp("two"), published, mqtt_broker, "fleet-of-two")
    watcher = Watcher(mqtt_broker, "fleet-of-two")
    published.publish_tiny(0)
    daemon.start()
    watcher.wait_release(A)
    published.publish_tiny(1)
    watcher.announce(B)
    watcher.wait_release(B)
    assert daemon.terminate() == 0
    watcher.close()
    (daemon.state_dir / "status.json").unlink()
    published.stop()
    return daemon.state_dir


@pytest.fixture
def offline(two_releases, published, tmp_path, mqtt_broker, fleet) -> Iterator[DaemonUnderTest]:
    """A daemon with these releases, whose store does not answer."""
    daemon = DaemonUnderTest(tmp_path, published, mqtt_broker, fleet)
    shutil.copytree(two_releases, daemon.state_dir)
    yield daemon
    published.stop()
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.process.kill()
        daemon.process.wait()


def on_disk(state_dir: Path) -> dict[str, bytes]:
    """All that makes the releases: their files, and what slots.json says of them."""
    slots = {
        str(path.relative_to(state_dir)): path.read_bytes()
        for path in (state_dir / "slots").rglob("*")
        if path.is_file()
    }
    document = json.loads((state_dir / "slots.json").read_bytes())
    slots["named"] = repr([document[name] for name in ("current", "previous", "refused")]).encode()
    return slots


@pytest.mark.parametrize("name", CAUSES)
def test_bad_start_costs_no_release(offline, watcher, tmp_path, monkeypatch, name, faults):
    if name not in USUAL and not faults.every:
        pytest.skip("a part of the causes by default; --every-fault tries all")
    cause, machine = CAUSES[name], BadMachine(offline, tmp_path)
    before = on_disk(offline.state_dir)
    with faults.injected(Kind.BAD_STARTS, "two releases, no network", name):
        machine.break_by(cause, monkeypatch)
        offline.start()
        wait_until(lambda: cause.told in offline.log, f"{cause.told} in the log", LIMIT_S)
        if cause.heals:
            told = watcher.wait_status(lambda s: cause.told in (s.warning or s.last_error or ""), cause.told)
            assert (told.state, told.release) == ("waiting", None)
        assert on_disk(offline.state_dir) == before
        machine.mend()
        if not cause.heals:
            if offline.process.poll() is None:
                offline.terminate()
            offline.start()
        elif offline.ask("update").returncode != 0:
            pytest.fail(offline.log)
        watcher.wait_release(B)
        assert_answers(offline, watcher, B)
        assert on_disk(offline.state_dir) == before
        status = watcher.wait_status(lambda s: s.warning is None, "no warning any more")
        assert status.previous == A
    assert offline.terminate() == 0
    assert "Traceback" not in offline.log


def flip_some_bit(folder: Path, chance: random.Random) -> Path:
    """Flip one bit of one file; return the file."""
    file = chance.choice(sorted(path for path in folder.rglob("*") if path.stat().st_size and path.is_file()))
    data = file.read_bytes()
    file.write_bytes(flip(data, chance.randrange(8 * len(data))))
    return file


def test_bad_start_after_a_flipped_bit_serves_and_is_mended(offline, watcher, published, faults):
    """Whatever bit flips, the daemon serves without a network; `test_integrity.py` has thousands of them."""
    chance = random.Random(11)
    for _ in range(60 if faults.every else 1):
        file = flip_some_bit(offline.state_dir, chance)
        with faults.injected(Kind.BIT_FLIPS, "the real daemon", file.name):
            offline.start()
            watcher.wait_status(lambda s: s.state == "serving" and s.release in {A, B}, f"{file} flipped")
            assert_answers(offline, watcher, watcher.status.release)
            published.start()
            assert offline.ask("update").returncode == 0
            watcher.wait_status(lambda s: s.release == B and s.decision == "serves", f"{file} mended")
            assert_answers(offline, watcher, B)
            assert offline.terminate() == 0
            published.stop()
            watcher.status = None


def test_a_self_made_release_stops_serving_when_the_signatures_are_verified(offline, watcher, published):
    """Somebody edited the card: the slot, and the digests of slots.json; the network is away."""
    document, files = tiny_release(3)
    for name, data in files.items():
        (offline.state_dir / "slots" / B / name).write_bytes(data)
    forged = encode_document(msgspec.structs.replace(document, release=B))
    (offline.state_dir / "slots" / B / "release.json").write_bytes(forged)
    content = json.loads((offline.state_dir / "slots.json").read_bytes())
    del content["checksum"]
    content["digests"][B] = hashlib.sha256(forged).hexdigest()
    for name in ("slots.json", "slots.copy.json"):
        (offline.state_dir / name).write_text(json.dumps(content))
    offline.start()
    status = watcher.wait_status(lambda s: s.release == A and s.state == "serving", "the signed one")
    assert "not what was signed" in (status.warning or "")
    assert_answers(offline, watcher, A)
    published.start()
    assert offline.ask("update").returncode == 0
    watcher.wait_release(B)
    assert_answers(offline, watcher, B)
    watcher.wait_status(lambda s: s.warning is None, "no warning any more")
