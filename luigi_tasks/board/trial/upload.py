"""Uploads of pictures: into anonymous memory as they come, never into this process's, and never on a disk."""

from __future__ import annotations

import dataclasses
import mmap
from typing import TYPE_CHECKING

import tornado.httputil

from edge_client.contract.errors import EdgeError, InputError
from edge_client.contract.free_memory import free_memory_bytes
from edge_client.contract.picture_file import MAX_FILE_BYTES
from luigi_tasks.board.pictures.decoding import BusyError, PictureMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of a form around its pictures.
FORM_BYTES = 65536
# What all uploads together may hold; one of the largest pictures and some usual ones.
HELD_BYTES = MAX_FILE_BYTES + (64 << 20)
# An upload above this is compared with the free memory, as a device does with a file (`picture_file`).
_FREELY_BYTES = 32_000_000
_PARTS = 100
_FIELD_BYTES = 4096


class Uploads:
    """The uploads that are under way; used by the event loop alone.

    Attributes:
        held_bytes: What they hold together.
    """

    def __init__(self) -> None:
        self.held_bytes = 0

    def check(self, size_bytes: int, more_bytes: int) -> None:
        """Refuse an upload that is too large, or for which there is no room.

        Args:
            size_bytes: Its size, as far as that is known.
            more_bytes: What it does not hold yet.
        Raises: InputError if it is larger than a picture may be; BusyError if there is no room now.
        """
        if size_bytes > MAX_FILE_BYTES + FORM_BYTES:
            msg = (
                f"{size_bytes:,} bytes; a device reads pictures of up to {MAX_FILE_BYTES:,} bytes: "
                "scale it down, or save it as a JPEG"
            )
            raise InputError(msg)
        free = free_memory_bytes() if more_bytes > _FREELY_BYTES else None
        if self.held_bytes + more_bytes > HELD_BYTES or (free is not None and more_bytes > free // 2):
            msg = "the board has no room for this picture now; try again in a moment, or scale it down"
            raise BusyError(msg)


class Upload:
    """The body of one request.

    Attributes:
        memory: What came so far.
        fault: Why the rest is not kept; None: it is.
    """

    def __init__(self, uploads: Uploads) -> None:
        self.memory = PictureMemory()
        self.fault: EdgeError | None = None
        self._uploads = uploads

    def receive(self, data: bytes) -> None:
        """Keep a part of the body."""
        if self.fault is not None:
            return
        try:
            self._uploads.check(self.memory.size_bytes + len(data), len(data))
            before = self.memory.size_bytes
            try:
                self.memory.write(data)
            finally:
                self._uploads.held_bytes += self.memory.size_bytes - before
        except EdgeError as e:
            self.fault = e  # told when the body has ended, as HTTP wants it

    def close(self) -> None:
        """Give the memory back."""
        if self.memory.descriptor >= 0:
            self._uploads.held_bytes -= self.memory.size_bytes
            self.memory.close()


@dataclasses.dataclass(frozen=True)
class FormFile:
    """A file of a form, in the memory of the upload.

    Attributes:
        name: Name that it came with.
        start: Where it starts.
        size_bytes: Its size.
    """

    name: str
    start: int
    size_bytes: int


def name_of(headers: tornado.httputil.HTTPHeaders) -> str:
    """Return the file's name in `Content-Disposition` of a body that is the picture itself; empty: none."""
    given = headers.get("Content-Disposition", "")
    if "filename" not in given or not given.isprintable():
        return ""
    disposition = f"form-data; name=x; {given.partition(';')[2]}"
    part = f"Content-Disposition: {disposition}\r\n\r\n".encode(errors="replace")
    files: dict[str, list[tornado.httputil.HTTPFile]] = {}
    _parse(b"-", part, {}, files)
    return next((one["filename"] for named in files.values() for one in named), "")


def split_form(memory: PictureMemory, content_type: str) -> tuple[dict[str, str], list[FormFile]]:
    """Return the fields and the files of a form (multipart/form-data, RFC 7578), without copies of the files.

    Raises: InputError if it is no such form.
    """
    fields: dict[str, list[bytes]] = {}
    files: list[FormFile] = []
    boundary = _boundary(content_type)
    if not memory.size_bytes:
        return {}, []
    with mmap.mmap(memory.descriptor, memory.size_bytes, prot=mmap.PROT_READ) as content:
        for start, body, end in _parts(content, boundary):
            found: dict[str, list[tornado.httputil.HTTPFile]] = {}
            # Tornado reads the header; it gets no content but that of a field.
            head = content[start:body].decode(errors="replace").encode()  # a name may be in another code
            is_file = b"filename" in head.lower()
            piece = head if is_file else head + content[body : min(end, body + _FIELD_BYTES)]
            _parse(boundary, piece, fields, found)
            files += [
                FormFile(one["filename"], body, end - body) for named in found.values() for one in named
            ]
    return {name: values[-1].decode(errors="replace") for name, values in fields.items()}, files


def _boundary(content_type: str) -> bytes:
    for part in content_type.split(";")[1:]:
        name, _, value = part.strip().partition("=")
        if name.lower() == "boundary" and value:
            return value.strip('"').encode("latin-1", "replace")
    raise InputError("a form without a boundary; send the picture itself as the body")


def _parts(content: mmap.mmap, boundary: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield where each part's header starts, where its content starts, and where that ends."""
    mark = b"--" + boundary
    at = content.find(mark)
    for _ in range(_PARTS):
        if at < 0 or content[at + len(mark) : at + len(mark) + 2] == b"--":
            return
        start = at + len(mark) + 2
        body = content.find(b"\r\n\r\n", start, start + FORM_BYTES)
        at = content.find(b"\r\n" + mark, start)
        if body < 0 or at < 0:
            raise InputError("a form that breaks off; send it again")
        yield start, body + 4, at
        at += 2
    msg = f"a form of more than {_PARTS} parts; send fewer pictures at once"
    raise InputError(msg)


def _parse(
    boundary: bytes,
    piece: bytes,
    fields: dict[str, list[bytes]],
    files: dict[str, list[tornado.httputil.HTTPFile]],
) -> None:
    mark = b"--" + boundary
    form = mark + b"\r\n" + piece + b"\r\n" + mark + b"--\r\n"
    try:
        tornado.httputil.parse_multipart_form_data(boundary, form, fields, files)
    except (tornado.httputil.HTTPInputError, ValueError) as e:
        msg = f"a form that cannot be read ({e}); send the picture itself as the body"
        raise InputError(msg) from e
