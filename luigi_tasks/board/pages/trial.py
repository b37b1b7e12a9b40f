"""The page *Try*: a picture is dropped, and answered by the current release as a device would.

    curl --data-binary @x.jpg -H 'Content-Type: image/jpeg' -H 'Accept: application/json' .../try

What is sent is never kept: it lies in anonymous memory until it is answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import tornado.web

from edge_client.contract.errors import EdgeError, InputError
from edge_client.contract.picture_file import MAX_FILE_BYTES
from luigi_tasks.board.page import HTML, Page
from luigi_tasks.board.rights import VIEWER
from luigi_tasks.board.templating import render
from luigi_tasks.board.trial import STEADY, TriedPicture, fault_of
from luigi_tasks.board.upload import FormFile, Upload, name_of, split_form

if TYPE_CHECKING:
    from collections.abc import Mapping

_UPLOAD_S = 300
_PICTURES_AT_ONCE = 20
_TOP = 5
_FORM = "multipart/form-data"


@tornado.web.stream_request_body
class TryPage(Page):
    """A form, and the answers to the pictures that were sent with it."""

    section = "try"
    needs: ClassVar[dict[str, str]] = {**Page.needs, "POST": VIEWER}
    changes: ClassVar[bool] = False

    _upload: Upload
    _is_working = False
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
        self._upload = Upload(self.board.trials.uploads)

    def data_received(self, chunk: bytes) -> None:
        """Keep a part of the body; what comes to a request that was refused is dropped."""
        if hasattr(self, "_upload"):
            self._upload.receive(chunk)

    def on_finish(self) -> None:
        """Give the memory back."""
        super().on_finish()
        if hasattr(self, "_upload"):
            self._upload.close()

    def on_connection_close(self) -> None:
        """Give the memory back, where nobody works with it."""
        if not self._is_working and hasattr(self, "_upload"):
            self._upload.close()

    async def get(self) -> None:
        """Show the form."""
        await self._show(())

    async def post(self) -> None:
        """Answer pictures."""
        self._is_working = True
        try:
            files = await self._files()
            shows = not self.wants_json or bool(self._field("show"))
            values = list(dict.fromkeys(filter(None, (self._release, self._field("beside")))))
            pictures = await self.board.trials.answer(
                self._upload.memory, files, values, shows=shows, top=self._top()
            )
        finally:
            self._is_working = False
            self._upload.close()
        if self.wants_json:
            self.answer("", {"pictures": pictures})
        elif self._is_of_script:
            self._finish_part(pictures)
        else:
            await self._show(pictures)

    def write_error(self, status_code: int, **kwargs: Any) -> None:  # noqa: ANN401 - Tornado's
        """Answer with what is wrong: in the place of the answer, where the page's script asked."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if not (self._is_of_script and isinstance(error, EdgeError)):
            super().write_error(status_code, **kwargs)
            return
        self.set_error_status(error)
        self._finish_part((fault_of("", 0, error),))

    async def _show(self, pictures: tuple[TriedPicture, ...]) -> None:
        model = await self.board.trials.model()
        chosen = {"chosen": self._release, "beside": self._field("beside")}
        self.answer("trial.html", model, pictures=pictures, address=self.client.origin, **chosen)

    @property
    def _is_of_script(self) -> bool:
        return self.request.headers.get("HX-Request") == "true" and not self.wants_json

    def _finish_part(self, pictures: tuple[TriedPicture, ...]) -> None:
        self.set_header("Content-Type", HTML)
        self.finish(render("parts/trial.html", {**self._common(), "pictures": pictures}))

    @property
    def _release(self) -> str:
        """The choice of the form or the address; `channel` may name one instead."""
        channel = self._field("channel") or self.board.settings.release.channel
        return self._field("release") or f"{STEADY}{channel}"

    def _top(self) -> int:
        """Return how many labels are told; a page has all."""
        given = self._field("top") or str(_TOP)
        if not given.isdecimal():
            msg = f"top={given[:20]!r}: give a number of labels, or 0 for all"
            raise InputError(msg)
        return int(given[:6]) if self.wants_json else 0

    def _field(self, name: str) -> str:
        return self._fields.get(name) or self.get_query_argument(name, "")

    async def _files(self) -> list[FormFile]:
        """Return where the pictures of the body are."""
        upload = self._upload
        if upload.fault is not None:
            raise upload.fault
        content_type = self.request.headers.get("Content-Type", "")
        if content_type.lower().startswith(_FORM):
            self._fields, files = await self.in_thread(lambda: split_form(upload.memory, content_type))
        else:
            files = [FormFile(name_of(self.request.headers), 0, upload.memory.size_bytes)]
        if not files or not upload.memory.size_bytes:
            raise InputError("no picture came with this request; choose one, and send it again")
        if len(files) > _PICTURES_AT_ONCE:
            msg = f"{len(files)} pictures at once, at most {_PICTURES_AT_ONCE}; send the others after them"
            raise InputError(msg)
        return files


HANDLERS = ((r"try", TryPage),)
