"""What pages have that take pictures: the body lies outside of this process's memory, within bounds."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import tornado.web

from edge_client.contract.errors import InputError
from edge_client.contract.picture_file import MAX_FILE_BYTES
from luigi_tasks.board.page import Page
from luigi_tasks.board.trial.upload import FormFile, Upload, name_of, split_form

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_UPLOAD_S = 300
_PICTURES_AT_ONCE = 20
_FORM = "multipart/form-data"


@tornado.web.stream_request_body
class UploadPage(Page):
    """Base of handlers whose POST is a picture, or a form with pictures."""

    _upload: Upload
    _is_working = False
    _give_back = staticmethod(lambda: None)
    _fields: Mapping[str, str] = {}

    def prepare(self) -> None:
        """Make room for what is to come."""
        super().prepare()
        if self.request.method != "POST":
            return
        length = self.request.headers.get("Content-Length", "")
        connection: Any = self.request.connection
        connection.set_max_body_size(2 * MAX_FILE_BYTES)
        connection.set_body_timeout(_UPLOAD_S)
        size_bytes = int(length) if length.isdecimal() else 0
        self.board.trials.uploads.check(size_bytes, size_bytes)
        self._give_back = self.board.access.take_upload(self.client)
        self._upload = Upload(self.board.trials.uploads)

    def data_received(self, chunk: bytes) -> None:
        """Keep a part of the body; what comes to a request that was refused is dropped."""
        if hasattr(self, "_upload"):
            self._upload.receive(chunk)

    def on_finish(self) -> None:
        """Give the memory back."""
        super().on_finish()
        self._give_back()
        if hasattr(self, "_upload"):
            self._upload.close()

    def on_connection_close(self) -> None:
        """Give the memory back, where nobody works with it."""
        self._give_back()
        if not self._is_working and hasattr(self, "_upload"):
            self._upload.close()

    @contextlib.contextmanager
    def working(self) -> Iterator[Upload]:
        """Keep the body for the block, also if its sender goes away."""
        self._is_working = True
        try:
            yield self._upload
        finally:
            self._is_working = False
            self._upload.close()

    def field(self, name: str) -> str:
        """Return a field of the form, or of the address; empty: it has none."""
        return self._fields.get(name) or self.get_query_argument(name, "")

    async def files(self, upload: Upload) -> list[FormFile]:
        """Return where the pictures of the body are.

        Raises: InputError if there are none, too many, or it was too large; BusyError.
        """
        if upload.fault is not None:
            raise upload.fault
        content_type = self.request.headers.get("Content-Type", "")
        if content_type.lower().startswith(_FORM):
            self._fields, files = await self.in_thread(lambda: split_form(upload.memory, content_type))
        else:
            files = [FormFile(name_of(self.request.headers), 0, upload.memory.size_bytes)]
        if not files or not upload.memory.size_bytes:
            raise InputError("no picture came with this request, or an empty file; choose one, and send it")
        if len(files) > _PICTURES_AT_ONCE:
            msg = f"{len(files)} pictures at once, at most {_PICTURES_AT_ONCE}; send the others after them"
            raise InputError(msg)
        return files
