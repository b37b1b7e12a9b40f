"""The page *Try*: a picture is dropped, and answered by the current release as a device would.

    curl --data-binary @x.jpg -H 'Content-Type: image/jpeg' -H 'Accept: application/json' .../try

What is sent is never kept: it lies in anonymous memory until it is answered. A labeller may send it on to the
inbox.
"""

from __future__ import annotations

from typing import Any, ClassVar

from edge_client.contract.errors import EdgeError, InputError
from luigi_tasks.board.access.rights import LABELLER, VIEWER
from luigi_tasks.board.live.streams import INBOX
from luigi_tasks.board.page import HTML
from luigi_tasks.board.pages.upload_page import UploadPage
from luigi_tasks.board.templating import render
from luigi_tasks.board.trial.answers import BY_CHANNEL, TriedPicture, fault_of

_TOP = 5


class TryPage(UploadPage):
    """A form, and the answers to the pictures that were sent with it."""

    section = "try"
    needs: ClassVar[dict[str, str]] = {**UploadPage.needs, "POST": VIEWER}
    changes: ClassVar[bool] = False

    async def get(self) -> None:
        """Show the form."""
        await self._show(())

    async def post(self) -> None:
        """Answer pictures."""
        with self.working() as upload:
            files = await self.files(upload)
            shows = not self.wants_json or bool(self.field("show"))
            values = list(dict.fromkeys(filter(None, (self.release, self.field("beside")))))
            pictures = await self.board.trials.answer(
                upload.memory, files, values, shows=shows, top=self._top()
            )
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
        chosen = {"chosen": self.release, "beside": self.field("beside")}
        more = {"pictures": pictures, "address": self.client.origin, "is_live": False}
        self.answer("trial.html", model, **more, **chosen)

    @property
    def _is_of_script(self) -> bool:
        return self.request.headers.get("HX-Request") == "true" and not self.wants_json

    def _finish_part(self, pictures: tuple[TriedPicture, ...]) -> None:
        self.set_header("Content-Type", HTML)
        values = {**self._common(), "pictures": pictures, "is_live": True}
        self.finish(render("parts/trial.html", values))

    @property
    def release(self) -> str:
        """The choice of the form or the address; `channel` may name one instead."""
        channel = self.field("channel") or self.board.settings.release.channel
        return self.field("release") or f"{BY_CHANNEL}{channel}"

    def _top(self) -> int:
        """Return how many labels are told; a page has all."""
        given = self.field("top") or str(_TOP)
        if not given.isdecimal():
            msg = f"top={given[:20]!r}: give a number of labels, or 0 for all"
            raise InputError(msg)
        return int(given[:6]) if self.wants_json else 0


class SentPage(TryPage):
    """A picture is sent to the inbox, where people label it."""

    needs: ClassVar[dict[str, str]] = {**UploadPage.needs, "GET": VIEWER, "POST": LABELLER}
    changes: ClassVar[bool] = True

    async def get(self) -> None:
        """Go to the form."""
        self.redirect(self.path("try"))

    async def post(self) -> None:
        """Write the picture into the inbox."""
        with self.working() as upload:
            [file, *more] = await self.files(upload)
            if more:
                raise InputError("several pictures; send each to the inbox by itself")
            sent = await self.board.trials.send(upload.memory, file, self.release)
        self.audit("board.sent_to_inbox", picture=sent.picture)
        self.board.look_now(INBOX)
        self.go("label", sent)


HANDLERS = ((r"try", TryPage), (r"try/inbox", SentPage))
