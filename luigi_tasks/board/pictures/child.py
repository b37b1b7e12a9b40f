"""The child that decodes what people and devices send: what crashes or hangs a decoder ends here.

    python -m luigi_tasks.board.pictures.child DESCRIPTOR

DESCRIPTOR is a socket to the board, see `orders.py`. This process loads the libraries once and sees
no picture. Each order is done by a fork of it, with limits of its own: what takes over the decoder of one
picture answers for no other one, and its memory is gone with it. A fork takes milliseconds, a start 0.2 s.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import resource
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec
from PIL import Image

from edge_client.children import confine, die_with_parent, hide_from_others, prefer_as_oom_victim
from edge_client.contract.errors import DeviceError, EdgeError, InputError
from edge_client.contract.preprocessing import FORMATS, decode_picture, fit_pixels
from edge_client.inference.classifier import classifier_from_release
from edge_client.inference.runtime import runtime_name
from luigi_tasks.board.pictures.orders import (
    MESSAGE_LIMIT_BYTES,
    REPLY_LIMIT_BYTES,
    STAGE_BYTES,
    Ended,
    PictureOrder,
    PictureReply,
    ReleaseAnswer,
    ReleaseFolder,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_QUALITY = 75


def main(arguments: list[str]) -> int:
    """Do orders until the board is gone."""
    die_with_parent()
    confine()
    prefer_as_oom_victim()
    hide_from_others()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected here
    resource.setrlimit(resource.RLIMIT_FSIZE, (REPLY_LIMIT_BYTES, REPLY_LIMIT_BYTES))
    channel = socket.socket(fileno=int(arguments[0]))
    _load_libraries()
    while True:
        data, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_LIMIT_BYTES, 2)
        if not data:
            return 0
        order = msgspec.json.decode(data, type=PictureOrder)
        own = os.getpid()
        child = os.fork()
        if not child:
            channel.close()
            _work(order, own, *descriptors)
        for one in descriptors:
            os.close(one)
        status = os.waitpid(child, 0)[1]
        channel.send(msgspec.json.encode(Ended(returncode=os.waitstatus_to_exitcode(status))))


def _load_libraries() -> None:
    """Load what an order needs, so that all forks share it."""
    for name in FORMATS:
        with contextlib.suppress(ImportError):  # named otherwise, or built without it: Pillow says so
            importlib.import_module(f"PIL.{name.capitalize()}ImagePlugin")
    Image.init()
    with contextlib.suppress(DeviceError):  # the order says so
        runtime_name()
    gc.freeze()  # the collector would write into pages that are shared


def _work(order: PictureOrder, parent: int, picture: int, reply: int) -> NoReturn:
    """Do an order in a process of its own, and end it."""
    code = 1
    try:
        die_with_parent()
        if os.getppid() == parent:
            _limit(order)
            _write(reply, _do(order, picture, reply))
            code = 0
    finally:
        os._exit(code)


def _limit(order: PictureOrder) -> None:
    data_bytes = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * resource.getpagesize()
    most = data_bytes + order.memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (order.processor_s, order.processor_s + 1))


def _write(descriptor: int, reply: PictureReply) -> None:
    data = memoryview(msgspec.msgpack.encode(reply))
    at = STAGE_BYTES
    while data:
        done = os.pwrite(descriptor, data, at)
        data, at = data[done:], at + done


def _do(order: PictureOrder, picture: int, reply: int) -> PictureReply:
    try:
        data = os.pread(picture, order.size_bytes, order.start)
        started = time.perf_counter()
        pixels = decode_picture(data, source=order.name)
        decoding_ms = (time.perf_counter() - started) * 1000
        answers = []
        for number, one in enumerate(order.releases, start=1):
            os.pwrite(reply, bytes([number]), 0)
            answers.append(_ask(one, pixels))
        return PictureReply(
            height=pixels.shape[0],
            width=pixels.shape[1],
            decoding_ms=decoding_ms,
            thumbnail=_thumbnail(pixels, order.side) if order.side else b"",
            answers=tuple(answers),
        )
    except EdgeError as e:
        return PictureReply(fault=str(e)[:4000], refused=isinstance(e, InputError))
    except MemoryError:
        most = order.memory_bytes // 1_000_000
        msg = f"{order.name}: it takes more than {most} MB of memory, the limit; scale it down"
        return PictureReply(fault=msg, refused=True)


def _ask(one: ReleaseFolder, pixels: NDArray[np.uint8]) -> ReleaseAnswer:
    """Return what a release says, by the same code as on a device."""
    try:
        classifier = classifier_from_release(Path(one.folder))
        if classifier.document_sha256 != one.digest:
            msg = f"{one.folder}: changed since it was signed; remove this folder"
            raise DeviceError(msg)
        classifier.warm()
        found = classifier.classify(pixels)
    except EdgeError as e:
        fault, refused = str(e)[:4000], isinstance(e, InputError)
        return ReleaseAnswer(release=one.release, fault=fault, refused=refused)
    except MemoryError:
        return ReleaseAnswer(release=one.release, fault="out of memory; free some on the board's machine")
    return ReleaseAnswer(
        release=one.release,
        label=found.label,
        index=found.index,
        confidence=found.confidence,
        sure=found.sure,
        known=found.known,
        latency_ms=found.latency_ms,
        scores=tuple(found.top(len(found.labels)).items()),
        given=_png(fit_pixels(pixels, classifier.input_height, classifier.input_width)),
        height=classifier.input_height,
        width=classifier.input_width,
    )


def _thumbnail(pixels: NDArray[np.uint8], side: int) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY, optimize=True)
    return out.getvalue()


def _png(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)
