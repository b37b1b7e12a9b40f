"""Files that people give in place of a `.tflite` file, each told by its own first bytes, with the way out."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

# At byte 4 of every TFLite file: tensorflow/lite/schema/schema.fbs, file_identifier.
_IDENTIFIER = b"TFL3"
# No model for a Pi is larger; a device file or a disk image has no end.
_LARGEST_BYTES = 1 << 30
_CONVERT = "convert it with tf.lite.TFLiteConverter and give the .tflite file"
_NAMES_SHOWN = 3

# First bytes, and what such a file is, with the way out.
_MAGIC = (
    (b"\x89HDF\r\n\x1a\n", f"a Keras model (HDF5, .h5): {_CONVERT}"),
    (b"\x1f\x8b", "a gzip archive: unpack it and give the .tflite file"),
    (b"BZh", "a bzip2 archive: unpack it and give the .tflite file"),
    (b"\xfd7zXZ", "an xz archive: unpack it and give the .tflite file"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: run `git lfs pull`"),
    (
        b"\x80\x02",
        "a pickle, as of PyTorch: convert it with ai-edge-torch and give the .tflite file",
    ),
)
# The same by suffix, where the first bytes tell nothing.
_SUFFIXES = {
    ".onnx": "an ONNX model: convert it with onnx2tf (to channels last), and give the .tflite file",
    ".pb": f"a TensorFlow graph (.pb): {_CONVERT}",
    ".pbtxt": f"a TensorFlow graph or label map as text: {_CONVERT}",
    ".h5": f"a Keras model: {_CONVERT}",
    ".keras": f"a Keras model: {_CONVERT}",
    ".pt": "a PyTorch model: convert it with ai-edge-torch and give the .tflite file",
    ".pth": "a PyTorch model: convert it with ai-edge-torch and give the .tflite file",
    ".mlmodel": "a Core ML model: give the .tflite file that it was made beside",
    ".hef": "a model compiled for Hailo: give the .tflite file that it was made from",
    ".json": "JSON, as of TensorFlow.js: give a .tflite file",
}


def is_tflite(content: bytes) -> bool:
    """Whether a file says that it is a TFLite file."""
    return content[4:8] == _IDENTIFIER


def read_model_file(path: Path) -> bytes:
    """Return the content of a `.tflite` file; other bytes are returned as they are if nobody knows them.

    Raises: InputError if it cannot be read, or is of another known format, which is named.
    """
    try:
        if path.is_dir():
            raise InputError(_of_folder(path))
        if path.exists() and not path.is_file():
            msg = f"{path}: not a file; give a .tflite file"
            raise InputError(msg)
        size = path.stat().st_size
        if size > _LARGEST_BYTES:
            msg = (
                f"{path}: {size} bytes, at most {_LARGEST_BYTES} are loaded; give a .tflite image classifier"
            )
            raise InputError(msg)
        content = path.read_bytes()
    except OSError as e:
        msg = f"{path}: the model file cannot be read: {e.strerror or e}; check the path"
        raise InputError(msg) from e
    if not is_tflite(content) and (found := _recognize(path, content)):
        msg = f"{path}: {found}"
        raise InputError(msg)
    return content


def _of_folder(path: Path) -> str:
    if (path / "saved_model.pb").exists():
        return f"{path}: a SavedModel folder of TensorFlow: {_CONVERT}"
    inside = sorted(one.name for one in path.glob("*.tflite"))
    way_out = f"give one of {', '.join(inside[:_NAMES_SHOWN])}" if inside else "give a .tflite file"
    return f"{path}: a folder; {way_out}"


def _recognize(path: Path, content: bytes) -> str:
    """Return what a file is that is no TFLite file; empty if that is unknown."""
    if not content:
        return "an empty file: copy or download the model again"
    if content.startswith(b"PK\x03\x04"):
        return _of_archive(path)
    if found := next((what for magic, what in _MAGIC if content.startswith(magic)), ""):
        return found
    return _of_head(path, content[:512])


def _of_head(path: Path, head: bytes) -> str:
    if head.lstrip()[:9].lower() in {b"<!doctype", b"<html>"} or head.lstrip()[:5].lower() == b"<html":
        return "a web page, not the file itself: download it by its raw address"
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it and give the .tflite file"
    if head[:1] == b"\x08" and (b"pytorch" in head or b"onnx" in head.lower() or b"tf2onnx" in head):
        return _SUFFIXES[".onnx"]
    return _SUFFIXES.get(path.suffix.lower(), "")


def _of_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as e:
        return f"a damaged zip archive ({e}): download it again, unpack it and give the .tflite file"
    models = [name for name in names if name.endswith(".tflite")]
    if "config.json" in names and any(name.startswith("model.weights") for name in names):
        return f"a Keras model (.keras): {_CONVERT}"
    if any(name.endswith("data.pkl") for name in names):
        return _SUFFIXES[".pt"]
    what = "a MediaPipe task bundle" if path.suffix == ".task" else "a zip archive"
    inside = f"with {', '.join(models[:_NAMES_SHOWN])}" if models else "without a .tflite file"
    return f"{what} {inside}: unpack it and give the .tflite file of an image classifier"
