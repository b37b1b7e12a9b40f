"""Small datasets made on the spot, and a web server that hands out archives and misbehaves on request."""

from __future__ import annotations

import base64
import bz2
import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import io
import lzma
import tarfile
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import zstandard
from PIL import Image

from luigi_tasks.settings.values import DatasetSettings
from tests.fakes.serving import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

# 64 x 64 pixels, the upper half red, the lower half blue; written once with x265.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAVZtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAA"
    "AAAAACJpbG9jAAAAAERAAAEAAQAAAAABegABAAAAAAAAACQAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAA"
    "AA5waXRtAAAAAAABAAAA1mlwcnAAAAC3aXBjbwAAAHhodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNw"
    "AAADAJAAAAMAAAMAHroCQGEAAQArQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqSSmubgIaDAgAAAMAyAAAAwAIQGIAAQAHRAHB"
    "crAiQAAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAABBwaXhpAAAAAAMICAgAAAAXaXBtYQAAAAAA"
    "AAABAAEEgQIDBAAAACxtZGF0AAAAICgBrxmA93yFN//3+Mf9fav+KQWUP/+X+a+/a7/m8Xxr"
)


def picture_bytes(seed: int, *, size: int = 8, suffix: str = "PNG") -> bytes:
    """Return a picture file that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, suffix)
    return file.getvalue()


def class_folders(classes: Mapping[str, int]) -> dict[str, bytes]:
    """Return that many different pictures of each class, by path."""
    return {
        f"{label}/{number:03}.png": picture_bytes(1000 * index + number)
        for index, (label, count) in enumerate(classes.items())
        for number in range(count)
    }


def write_tree(folder: Path, tree: Mapping[str, bytes]) -> Path:
    """Write files below the folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def dataset_settings(cache_dir: Path, url: str = "", **changes) -> DatasetSettings:
    """Return settings with the pipeline's defaults, but for what is given."""
    settings = DatasetSettings(
        url=url,
        sha256="",
        cache_dir=cache_dir,
        min_images_per_class=2,
        holdout_percent=20.0,
        max_left_out_percent=5.0,
        max_unpacked_bytes=1 << 30,
        shard_pictures=1000,
        group="",
        burst_s=10.0,
        near_duplicates=True,
    )
    return dataclasses.replace(settings, **changes)


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
}


def tar_bytes(tree: Mapping[str, bytes], compression: str = "gz") -> bytes:
    """Return a tar with the files, compressed as one of `COMPRESSIONS`."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in tree.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return COMPRESSIONS[compression](file.getvalue())


def zip_bytes(tree: Mapping[str, bytes]) -> bytes:
    """Return a zip with the files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in tree.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return file.getvalue()


class ArchiveServer:
    """Serves one file on a loopback port and counts who asks.

    Attributes:
        data: What is served.
        status: The answer's status.
        headers: More headers of the answer.
        cut_bytes: How many of the promised bytes never come.
        before_end: Called with the request's number (from 1) before the last byte is sent.
        requests: Paths asked for.
    """

    def __init__(self) -> None:
        self.data = b""
        self.status = 200
        self.headers: dict[str, str] = {}
        self.cut_bytes = 0
        self.before_end: Callable[[int], None] = lambda _number: None
        self.requests: list[str] = []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.requests.append(self.path)
                number = len(owner.requests)
                self.send_response(owner.status)
                self.send_header("Content-Length", str(len(owner.data)))
                for name, value in owner.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                data = owner.data[: len(owner.data) - owner.cut_bytes]
                with contextlib.suppress(ConnectionError):  # the reader was killed
                    self.wfile.write(data[:-1])
                    owner.before_end(number)
                    self.wfile.write(data[-1:])

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/pictures"

    @property
    def sha256(self) -> str:
        """Digest of what is served."""
        return hashlib.sha256(self.data).hexdigest()

    @contextlib.contextmanager
    def running(self) -> Iterator[ArchiveServer]:
        """Serve until the block ends."""
        with serving(self._server):
            yield self
