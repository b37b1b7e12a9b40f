"""Libraries of cameras that cannot be imported: real imports that fail as those of the field do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from edge_client.contract.errors import DeviceError
from edge_client.settings.frames import SourceSettings
from edge_client.sources.opening import open_source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NUMPY_1 = """
import sys
sys.stderr.write("A module that was compiled using NumPy 1.x cannot be run in NumPy 2.4.6 as it may crash.")
"""
# What the import does -> the way out that is told.
OPENCV = {
    'raise ImportError("libGL.so.1: cannot open shared object file: No such file")': "opencv-python-headless",
    'raise ImportError("libgthread-2.0.so.0: cannot open shared object file")': "libglib2.0-0",
    f'{NUMPY_1}raise AttributeError("_ARRAY_API not found")': "built for another NumPy",
    f'{NUMPY_1}raise ImportError("numpy.core.multiarray failed to import")': "built for another NumPy",
    'raise SystemError("initialization of cv2 raised unreported exception")': "reinstall it",
    'raise SystemExit("no display")': "reinstall it",
    'raise RuntimeError("module compiled against ABI version 0x1000009")': "built for another NumPy",
    "import gone_with_an_upgrade": "reinstall it",
    "": "OpenCV: .* is none; reinstall it",
}
PICAMERA = {
    "import libcamera_of_this_test as libcamera": "libcamera is the system's: apt install python3-picamera2",
    'raise ImportError("cannot import name Transform from libcamera (unknown location)")': "libcamera is the",
    'raise ValueError("numpy.dtype size changed, may indicate binary incompatibility")': "uninstall numpy",
    "import pykms": "python3-kms",
    'raise OSError("libfoo.so: invalid ELF header")': "apt full-upgrade",
    "": "picamera2: .* is another; apt install",
}
CASES = [("video", "cv2", *one) for one in OPENCV.items()] + [
    ("picamera", "picamera2", *one) for one in PICAMERA.items()
]


def loaded() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] in {"cv2", "picamera2"}]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which libraries are imported first."""
    before = {
        name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] in {"cv2", "picamera2"}
    }
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in loaded():
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.parametrize(("kind", "module", "content", "way_out"), CASES)
def test_library_that_cannot_be_imported_is_a_fault_with_its_way_out(kind, module, content, way_out, library):
    (library / f"{module}.py").write_text(content)
    for _ in range(2):  # the second try tells the same, not what the first one left behind
        with pytest.raises(DeviceError, match=way_out):
            open_source(SourceSettings(kind=kind, path="0"))


def test_library_that_is_mended_is_imported_without_a_new_start(library):
    package = library / "cv2"
    package.mkdir()
    (package / "part.py").write_text("")
    # As OpenCV's own loader does, which says "recursion is detected" if a mark of an earlier try is there.
    (package / "__init__.py").write_text(
        "import sys\nassert not hasattr(sys, 'OpenCV_LOADER')\nsys.OpenCV_LOADER = True\n"
        f"sys.path.insert(0, {str(library / 'bin')!r})\nimport cv2.part\nimport native_part_of_cv2\n"
        "del sys.OpenCV_LOADER\nVideoCapture = native_part_of_cv2.VideoCapture\n"
    )
    settings, path = SourceSettings(kind="video", path="0"), list(sys.path)
    for _ in range(2):
        with pytest.raises(DeviceError, match="native_part_of_cv2"):
            open_source(settings)
        assert sys.path == path
    (library / "bin").mkdir()
    (library / "bin/native_part_of_cv2.py").write_text("VideoCapture = object\n")
    open_source(settings)
