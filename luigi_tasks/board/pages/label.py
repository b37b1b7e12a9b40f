"""The page Label: frames that devices were unsure of, and doubtful labels of the dataset."""

from __future__ import annotations

import dataclasses
import urllib.parse
from typing import TYPE_CHECKING, Any

import msgspec
import tornado.web

from edge_client.contract.errors import InputError
from edge_client.contract.text import one_line
from luigi_tasks.board.access.rights import LABELLER, OPERATOR, VIEWER
from luigi_tasks.board.labels.grid import (
    ALL,
    DECIDED,
    DOUBTFUL,
    INBOX,
    NUMBERED,
    UNDECIDED,
    Query,
    read_model,
)
from luigi_tasks.board.labels.taking import preview
from luigi_tasks.board.labels.thumbnails import LARGE, SMALL
from luigi_tasks.board.page import Page
from luigi_tasks.labelling.desk import OF_DATASET, Choice
from luigi_tasks.labelling.folder import LABELS_CSV
from luigi_tasks.labelling.labels_file import DISCARD

if TYPE_CHECKING:
    from luigi_tasks.labelling.desk import Outcome

_CHOICES_AT_MOST = 2000
_DIGITS = 7
_LABEL_CHARACTERS = 255
_EXAMPLE = '{"decisions": [{"id": "cam1/1.jpg", "label": "cat", "was": ""}]}'
_SHOW = (UNDECIDED, DECIDED, ALL)


class Chosen(msgspec.Struct, frozen=True):
    """One decision of a request, see `labelling.desk.Choice`."""

    id: str
    label: str
    was: str = ""


class Decisions(msgspec.Struct, frozen=True):
    """Body of `POST label/decisions`.

    Attributes:
        decisions: What is chosen.
        new_class: Whether a label may start a class.
    """

    decisions: list[Chosen]
    new_class: bool = False


class LabelPage(Page):
    """The grid."""

    section = "label"

    async def get(self, tab: str = "") -> None:
        """Show it."""
        given = self.get_query_argument
        show = given("show", UNDECIDED)
        query = Query(
            tab=DOUBTFUL if tab else INBOX,
            device=given("device", ""),
            predicted=given("predicted", ""),
            why=given("why", ""),
            show=show if show in _SHOW else UNDECIDED,
            at=given("at", ""),
        )
        room = self.board.labels
        room.refresh(query.tab)
        model = await self.in_thread(lambda: read_model(room.desk, room.ordered, query))
        self.answer(
            "label.html",
            model,
            listing=room.lister.state,
            numbered=NUMBERED,
            discard=DISCARD,
            may_label=self.person.may(LABELLER),
            kept=self._number("kept"),
            refused=self._number("refused"),
        )

    def _number(self, name: str) -> int | None:
        given = self.get_query_argument(name, "")
        return int(given) if given.isdecimal() and len(given) < _DIGITS else None


class StatePage(Page):
    """What changed since an open page was made: for its script."""

    async def get(self) -> None:
        """Answer with decisions since a place, and how far the listing is."""
        try:
            since = int(self.get_query_argument("since", "-1"))
        except ValueError:
            since = -1
        tab = DOUBTFUL if self.get_query_argument("tab", INBOX) == DOUBTFUL else INBOX
        room = self.board.labels
        room.refresh(tab)

        def read() -> dict[str, Any]:
            place, decisions = room.desk.since(since)
            model = read_model(room.desk, room.ordered, Query(tab=tab))
            return {
                "place": place,
                "decisions": decisions,
                "listing": model.listing,
                "decided": model.decided,
                "of": model.of,
                "undecided": model.undecided,
                "to_take": model.to_take,
                "labels": model.labels,
                "lister": dataclasses.asdict(room.lister.state),
            }

        found = await self.in_thread(read)
        self.answer_json(found)


class DecisionsPage(Page):
    """Decisions."""

    section = "label"
    needs = {"POST": LABELLER}
    body_bytes = 2 << 20

    async def post(self) -> None:
        """Keep what a person chose."""
        asked = self.sent_json(Decisions, _EXAMPLE) if self.sends_json else self._from_form()
        if len(asked.decisions) > _CHOICES_AT_MOST:
            msg = f"{len(asked.decisions)} decisions at once; send {_CHOICES_AT_MOST} at most"
            raise InputError(msg)
        choices = [Choice(one.id, one.label[: _LABEL_CHARACTERS + 1], one.was) for one in asked.decisions]
        desk, by = self.board.labels.desk, one_line(self.person.name)
        outcomes = await self.in_thread(lambda: desk.choose(choices, by, new_class=asked.new_class))
        place, _ = await self.in_thread(lambda: desk.since(-1))
        self.board.labels.tell(place)
        kept = [one for one in outcomes if not one.fault]
        self.audit(
            "labels.chosen",
            pictures=len(kept),
            labels=", ".join(sorted({one.label or "undecided" for one in kept})),
        )
        if self.sends_json or self.wants_json:
            self.answer_json({"outcomes": outcomes, "place": place})
            return
        self._back(outcomes)

    def _from_form(self) -> Decisions:
        label, act = self.get_body_argument("label", ""), self.get_body_argument("act", "")
        if act == "typed":
            label = self.get_body_argument("typed", "").strip()
        ids = self.get_body_arguments("id")
        own = (
            {one: self.get_body_argument(f"{act}:{one}", "") for one in ids} if act in {"own", "keep"} else {}
        )
        was = {one: self.get_body_argument(f"was:{one}", "", strip=False) for one in ids}
        decisions = [Chosen(one, own.get(one, label), was[one]) for one in ids]
        return Decisions(decisions, new_class=bool(self.get_body_argument("new_class", "")))

    def _back(self, outcomes: list[Outcome]) -> None:
        refused = sum(bool(one.fault) for one in outcomes)
        told = {"kept": len(outcomes) - refused, "refused": refused}
        tab = "label/doubtful" if any(one.id.startswith(OF_DATASET) for one in outcomes) else "label"
        self.redirect(self.path(tab) + "?" + urllib.parse.urlencode(told), status=303)


class TakePage(Page):
    """What TakeLabelled would do, and its start."""

    section = "label"
    part = "the dataset"
    needs = {"GET": VIEWER, "HEAD": VIEWER, "POST": OPERATOR}

    async def get(self) -> None:
        """Show what would be done."""
        room = self.board.labels
        room.refresh()  # what a run took is listed again
        listed_at, settings = room.lister.state.ended_at, self.board.settings
        model = await self.in_thread(lambda: preview(room.desk, settings, self.board.runs, listed_at))
        self.answer("label_take.html", model, listing=room.lister.state)

    async def post(self) -> None:
        """Start it."""
        path = str(self.board.labels.desk.folder / LABELS_CSV)
        arguments = ["TakeLabelled", "--labels", path]
        if self.get_body_argument("new_labels", ""):
            arguments.append("--new-labels")
        run = await self.in_thread(lambda: self.board.runs.start(arguments, self.person))
        self.audit("board.labels_taken", run=run)
        self.go("label/take", {"run": run})


class PicturePage(Page):
    """A small copy of a picture."""

    part = "label pictures"

    async def get(self, sha256: str) -> None:
        """Answer with a JPEG; what cannot be shown is an error with the reason."""
        side = LARGE if self.get_query_argument("large", "") else SMALL
        if not await self.in_thread(lambda: self.board.labels.has(sha256)):
            raise tornado.web.HTTPError(404, reason="no such picture here")
        data = await self.board.labels.thumbnail(self.board.pictures, sha256, side)
        self.set_header("Content-Type", "image/jpeg")
        self.set_header("Cache-Control", "private, max-age=300")
        self.finish(data)


HANDLERS = (
    (r"label(?:/(doubtful))?", LabelPage),
    (r"label/state", StatePage),
    (r"label/decisions", DecisionsPage),
    (r"label/take", TakePage),
    (r"label/pictures/([0-9a-f]{64})", PicturePage),
)
