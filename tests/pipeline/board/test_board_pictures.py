"""Pictures are decoded in confined children: one that hangs, dies or grows ends alone, and others go on."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import hashlib
import io
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
import pytest
from local_services import wait_until
from PIL import Image

from edge_client.contract.errors import InputError
from edge_client.contract.names import RELEASE_FILE
from luigi_tasks.board.pictures.decoding import CHILDREN, QUEUE, BusyError, PictureMemory, Pictures
from luigi_tasks.board.pictures.orders import ReleaseFolder
from tests.fakes.scans import with_scans
from tests.fakes.tiny_model import plain_picture
from tests.fakes.tiny_release import png, write_release

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

T = TypeVar("T")

SIDE = 16
GREEN = png(plain_picture("green", 40, 80))


@contextlib.contextmanager
def pictures(**limits: Any) -> Iterator[Pictures]:
    """Give what decodes, with other limits; all of it ends."""
    made = Pictures(**limits)
    try:
        yield made
    finally:
        made.close()
        wait_until(lambda: not children(), "the children to end")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns; in a thread: a browser's driver may have the loop of this one."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def children(parent: int = 0) -> list[int]:
    """Return the processes that decode, or work on an order of one."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            command = (status.parent / "cmdline").read_bytes()
            if int(fields["PPid"]) == (parent or os.getpid()) and b"pictures.child" in command:
                found.append(int(status.parent.name))
    return sorted(found)


def size_of(data: bytes) -> tuple[int, int]:
    """Return width and height of a picture."""
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG"
        return image.size


def test_thumbnails_are_small_upright_jpegs():
    turned = io.BytesIO()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    Image.new("RGB", (80, 40)).save(turned, "JPEG", exif=exif)

    async def ask(made: Pictures) -> list[bytes | BaseException]:
        several = [made.thumbnail(one, SIDE) for one in (GREEN, turned.getvalue(), b"x")]
        return await asyncio.gather(*several, return_exceptions=True)

    with pictures() as made:
        first, second, fault = run(ask(made))
    assert isinstance(first, bytes)
    assert isinstance(second, bytes)
    assert (size_of(first), size_of(second)) == ((16, 8), (8, 16))
    assert isinstance(fault, InputError)
    assert "not a complete picture" in str(fault)


def test_orders_wait_in_a_queue_that_has_an_end():
    many = QUEUE + CHILDREN + 14

    async def ask(made: Pictures) -> list[bytes | BaseException]:
        orders = (made.thumbnail(GREEN, SIDE) for _ in range(many))
        return await asyncio.gather(*orders, return_exceptions=True)

    with pictures() as made:
        found = run(ask(made))
        assert sum(isinstance(one, BusyError) for one in found) == 14
        assert sum(isinstance(one, bytes) for one in found) == QUEUE + CHILDREN
        assert len(children()) == CHILDREN


def test_a_child_that_hangs_is_ended_while_another_one_answers():
    async def ask(made: Pictures) -> None:
        await made.thumbnail(GREEN, SIDE)
        [stuck] = children()
        os.kill(stuck, signal.SIGSTOP)
        hangs = asyncio.ensure_future(made.thumbnail(GREEN, SIDE, "holiday.jpg"))
        await asyncio.sleep(0)
        assert size_of(await made.thumbnail(GREEN, SIDE)) == (16, 8)
        with pytest.raises(InputError, match=r"holiday.jpg: no answer within 3 s, the limit; save it again"):
            await hangs
        assert stuck not in children()
        assert made.ended == 1
        assert size_of(await made.thumbnail(GREEN, SIDE)) == (16, 8)

    with pictures(time_s=3.0) as made:
        run(ask(made))


def test_the_board_ends_while_a_child_hangs():
    async def ask(made: Pictures) -> None:
        await made.thumbnail(GREEN, SIDE)
        os.kill(children()[0], signal.SIGSTOP)
        hangs = asyncio.ensure_future(made.thumbnail(GREEN, SIDE))
        await asyncio.sleep(0)
        made.close()
        with pytest.raises((BusyError, asyncio.CancelledError)):
            await hangs

    with pictures(time_s=600.0) as made:
        run(ask(made))


def test_a_child_that_dies_is_replaced_and_a_crash_of_a_decoder_is_the_pictures_fault():
    async def ask(made: Pictures) -> None:
        await made.thumbnail(GREEN, SIDE)
        os.kill(children()[0], signal.SIGKILL)
        assert size_of(await made.thumbnail(GREEN, SIDE)) == (16, 8), "no picture was at fault"
        [child] = children()
        slow = asyncio.ensure_future(made.thumbnail(with_scans(60, 2000), SIDE, "scans.jpg"))
        await asyncio.to_thread(wait_until, lambda: bool(children(child)), "the order to be worked on")
        os.kill(children(child)[0], signal.SIGSEGV)
        with pytest.raises(InputError, match=r"scans.jpg: it crashed its decoder .*SIGSEGV.*; save it again"):
            await slow
        assert children() == [child], "it saw no picture itself"
        assert size_of(await made.thumbnail(GREEN, SIDE)) == (16, 8)

    with pictures() as made:
        run(ask(made))


def test_a_picture_that_takes_too_much_memory_is_refused():
    noise = np.random.default_rng(1).integers(0, 256, (3000, 4000, 3), np.uint8)
    large = io.BytesIO()
    Image.fromarray(noise).save(large, "BMP")

    async def ask(made: Pictures) -> None:
        with pytest.raises(InputError, match="takes 84 MB of memory, and"):
            await made.thumbnail(large.getvalue(), SIDE)
        assert size_of(await made.thumbnail(GREEN, SIDE)) == (16, 8)

    with pictures(memory_bytes=80_000_000) as made:
        run(ask(made))


def test_without_a_runtime_the_answer_says_how_to_get_one(tmp_path, monkeypatch):
    for name in ("ai_edge_litert", "tflite_runtime"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('no wheel')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    document = write_release(tmp_path / "slot")
    digest = hashlib.sha256((tmp_path / "slot" / RELEASE_FILE).read_bytes()).hexdigest()
    slot = ReleaseFolder(release=document.release, folder=str(tmp_path / "slot"), digest=digest)
    with pictures() as made, PictureMemory(GREEN) as memory:
        [answer] = run(made.classify(memory, [slot])).answers
        assert "no TFLite runtime: pip install ai-edge-litert" in answer.fault
        other = msgspec.structs.replace(slot, digest="0" * 64)
        monkeypatch.undo()
        os.kill(children()[0], signal.SIGKILL)
        first, second = run(made.classify(memory, [slot, other])).answers
        assert (first.label, first.fault, second.label) == ("green", "", "")
        assert "changed since it was signed" in second.fault


def test_children_end_when_there_is_nothing_to_do_and_start_again():
    with pictures(idle_s=0.1) as made:
        run(made.thumbnail(GREEN, SIDE))
        wait_until(lambda: not children(), "the child to end")
        run(made.thumbnail(GREEN, SIDE))
        made.close()
        with pytest.raises(BusyError):
            run(made.thumbnail(GREEN, SIDE))
