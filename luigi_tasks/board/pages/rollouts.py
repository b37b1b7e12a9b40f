"""The pages of rollouts: what changed, who is hit, what they have in common; and a person's decisions.

A decision is confirmed on a page that says in numbers what will happen. Its form carries what was seen; where
the rollout has moved meanwhile, nothing is done, and the page says what it is in now (409).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec
import tornado.web

from edge_client.contract.errors import InputError, TransportError
from edge_client.contract.names import check_name
from luigi_tasks.board.access.rights import OPERATOR, VIEWER
from luigi_tasks.board.live.streams import ROLLOUTS
from luigi_tasks.board.page import JSON, Page
from luigi_tasks.board.paging import part_of, whole_number
from luigi_tasks.board.rollouts import acts as rollout_acts
from luigi_tasks.board.rollouts import figures as rollout_figures
from luigi_tasks.board.rollouts.child import DRAFT, LOOK, START, Done, Order, in_child
from luigi_tasks.board.rollouts.reading import ShownRollout, UnknownError
from luigi_tasks.board.rollouts.view import ShownStage, show_draft, verdict_name
from luigi_tasks.board.templating import quote
from luigi_tasks.fleet.person import HISTORY_CHARACTERS, for_history
from luigi_tasks.fleet.records import RolloutRecord  # noqa: TC001 - msgspec reads it
from luigi_tasks.fleet.standing import Seen

if TYPE_CHECKING:
    from collections.abc import Callable

    from luigi_tasks.board.rollouts.acts import Act
    from luigi_tasks.board.rollouts.reading import RolloutReader
    from luigi_tasks.fleet.view import FleetView

# A store that is slower is told; the decision may still be written.
ACT_LIMIT_S = 30.0
# Rows of a page: one stays small, however much there is.
CHANNELS_ROWS, EVENTS_ROWS = 40, 50

T = TypeVar("T")


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What a person sends to decide.

    Attributes:
        why: Reason, 1 to 500 characters.
        rollout: Id of the rollout that was seen; empty: the one that runs.
        events: Entries of its history that were seen; None: whatever there are.
    """

    why: str = ""
    rollout: str = ""
    events: int | None = None


class Confirmation(msgspec.Struct, frozen=True, kw_only=True):
    """An act before it is done, or after it could not be.

    Attributes:
        rollout: The rollout as it is now.
        act: The act.
        events: Entries of its history: what the person sees.
        why: Reason, as far as it was given.
        error: What was wrong; empty: nothing.
        has_moved: Whether the rollout is no longer what was seen.
    """

    rollout: ShownRollout
    act: rollout_acts.Act
    events: int
    why: str = ""
    error: str = ""
    has_moved: bool = False


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a program sends to start a rollout.

    Attributes:
        release: The release.
        skip: Whether devices that cannot run it are left out.
    """

    release: str
    skip: bool = False


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout before it is started.

    Attributes:
        channel: The channel.
        releases: Releases that may be rolled out, the newest first.
        release: The chosen one; empty: none yet.
        skip: Whether devices that cannot run it are left out.
        rollout: What would be started; None: nothing can be.
        stages: Its stages, as the registry is now.
        words: Which devices can run it.
        error: Why it cannot be; empty: it can.
        key_fault: Why this machine cannot start it; empty: it can.
    """

    channel: str
    releases: tuple[str, ...]
    release: str = ""
    skip: bool = False
    rollout: RolloutRecord | None = None
    stages: tuple[ShownStage, ...] = ()
    words: str = ""
    error: str = ""
    key_fault: str = ""


class RolloutPage(Page):
    """Base of the pages of rollouts."""

    section = "rollouts"

    @property
    def reader(self) -> RolloutReader:
        """Reader of rollouts."""
        return self.board.rollouts

    async def view(self) -> FleetView:
        """Return the fleet."""
        return await self.in_thread(self.board.fleet_view)

    async def show(self, channel: str, name: str = "", verdict: str = "") -> ShownRollout:
        """Return a rollout; one that is not there is an HTTPError."""
        view = await self.view()
        return await self.find(lambda: self.reader.rollout(view, channel, name, verdict))

    async def find(self, read: Callable[[], T]) -> T:
        """Return what a function of the reader returns; HTTPError where it is not there."""
        try:
            return await self.in_thread(read)
        except UnknownError as e:
            raise tornado.web.HTTPError(404, reason=str(e)) from e

    async def in_child(self, order: Order) -> Done:
        """Return what came of an order that a process of its own carried out; a few at a time."""
        async with self.reader.children:
            return await in_child(order)

    def page_number(self) -> int:
        """Return the number of the page that is asked for."""
        return whole_number(self.get_query_argument("page", ""), 1)

    def done(self, channel: str, record: RolloutRecord | None) -> None:
        """Answer that something was done: a program gets the rollout, a browser goes to its page."""
        names = (channel, record.id) if record is not None else (channel,)
        below = "/".join(("rollouts", *map(quote, names)))
        self.go(below, {"channel": channel, "rollout": record})

    def address(self, *names: str) -> str:
        """Return an address below `rollouts`, for the browser."""
        return self.path("/".join(("rollouts", *map(quote, names))))

    def answer(self, template: str, model: object, **more: Any) -> None:  # noqa: ANN401 - as the base
        """Answer, with what the templates of rollouts draw with."""
        super().answer(template, model, figures=rollout_figures, address=self.address, **more)


class RolloutsPage(RolloutPage):
    """All channels."""

    async def get(self) -> None:
        """Show them."""
        view = await self.view()
        listing = await self.in_thread(lambda: self.reader.channels(view))
        part = part_of(listing.channels, self.page_number(), CHANNELS_ROWS)
        self.answer("rollouts.html", listing, part=part)


class OneRolloutPage(RolloutPage):
    """One rollout: the one that runs, or ran last, or that is named."""

    async def get(self, channel: str, name: str = "") -> None:
        """Show it, with the newest verdict or the one that is asked for."""
        verdict = self.get_query_argument("verdict", "")
        shown = await self.show(channel, name, verdict)
        looked = self.reader.looked.get(channel)
        events = shown.rollout.events[::-1] if shown.rollout is not None else ()
        self.answer(
            "rollout.html",
            shown,
            named=bool(name),
            asked=verdict,
            looked=looked,
            verdict_name=verdict_name,
            history=part_of(events, self.page_number(), EVENTS_ROWS),
        )


class PastRolloutsPage(RolloutPage):
    """The rollouts of a channel."""

    async def get(self, channel: str) -> None:
        """Show a page of them."""
        view, number = await self.view(), self.page_number()
        self.answer("rollouts_past.html", await self.find(lambda: self.reader.past(view, channel, number)))


class LooksPage(RolloutPage):
    """The verdicts of a rollout."""

    async def get(self, channel: str, name: str) -> None:
        """Show a page of them."""
        number = self.page_number()
        self.answer("rollout_looks.html", await self.find(lambda: self.reader.looks(channel, name, number)))


class VerdictDocument(RolloutPage):
    """The signed document of a verdict, as it lies in the bucket."""

    async def get(self, channel: str, name: str, verdict: str) -> None:
        """Send it."""
        data = await self.find(lambda: self.reader.document(channel, name, verdict))
        self.set_header("Content-Type", JSON)
        self.set_header("Content-Disposition", f'attachment; filename="{verdict}.json"')
        self.finish(data)


class ActPage(RolloutPage):
    """What a person decides."""

    needs: ClassVar[dict[str, str]] = {"GET": OPERATOR, "HEAD": OPERATOR, "POST": OPERATOR}

    async def get(self, channel: str, name: str, act: str) -> None:
        """Ask for the reason, and say in numbers what will happen."""
        shown = await self.show(channel, name)
        self._confirm(shown, act)

    async def post(self, channel: str, name: str, act: str) -> None:
        """Do it."""
        decision = self._decision(name)
        who = for_history(self.person.name or "board", "name")
        shown = await self.show(channel, decision.rollout)
        try:
            why = for_history(decision.why, "why")
        except InputError as e:
            self.set_status(400)
            return self._confirm(shown, act, decision, error=str(e))
        seen = Seen(decision.rollout, decision.events) if decision.rollout else None
        try:
            record = await self._perform(channel, act, who, why, seen)
        except InputError as e:
            return await self._explain(channel, act, who, decision, e)
        except TransportError as e:
            shown = await self.show(channel, decision.rollout)
            self.set_status(503)
            return self._confirm(shown, act, decision, error=str(e))
        self.audit(f"rollout.{act}", why, channel=channel, rollout=record.id if record is not None else "")
        self.board.look_now(ROLLOUTS)
        return self.done(channel, record)

    def _decision(self, name: str) -> Decision:
        """Return what was sent: a form, or JSON."""
        if self.sends_json:
            sent = self.sent_json(Decision, '{"why": "too slow"}')
            if name and sent.rollout not in {"", name}:
                msg = f"rollout {sent.rollout!r} is not the one of the address"
                raise InputError(msg)
            return msgspec.structs.replace(sent, rollout=name or sent.rollout)
        events = whole_number(self.get_body_argument("events", ""), -1)
        if not name or events < 0:
            msg = "the form does not say which rollout was seen; open the rollout's page again"
            raise InputError(msg)
        why = self.get_body_argument("why", "", strip=False)
        return Decision(why=why, rollout=name, events=events)

    async def _perform(
        self, channel: str, act: str, who: str, why: str, seen: Seen | None
    ) -> RolloutRecord | None:
        from luigi_tasks.fleet.actions import open_fleet  # noqa: PLC0415 - imports python-tuf, paho

        def work() -> RolloutRecord | None:
            return rollout_acts.perform(open_fleet(self.board.settings, seen), act, channel, who, why)

        try:
            return await self.in_thread(work, ACT_LIMIT_S)
        except TransportError as e:
            msg = (
                f"{e}. The rollout's page shows whether the decision is written; if it is, the next look "
                "finishes what was begun"
            )
            raise TransportError(msg) from e

    async def _explain(self, channel: str, act: str, who: str, decision: Decision, error: InputError) -> None:
        """Answer that nothing was done, and what the rollout is in now; 303 where it was done before."""
        shown = await self.show(channel, decision.rollout)
        record = shown.rollout
        if record is not None and decision.events is not None:
            why = for_history(decision.why, "why")
            if rollout_acts.was_done(record, act, decision.events, who, why):
                return self.done(channel, record)
        self.set_status(409)
        return self._confirm(shown, act, decision, error=str(error), has_moved=True)

    def _confirm(
        self,
        shown: ShownRollout,
        act: str,
        decision: Decision | None = None,
        *,
        error: str = "",
        has_moved: bool = False,
    ) -> None:
        chosen: Act | None = next((one for one in shown.acts if one.name == act), None)
        if chosen is None:
            raise tornado.web.HTTPError(
                404, reason="no rollout runs on this channel that this could be done to"
            )
        model = Confirmation(
            rollout=shown,
            act=chosen,
            events=len(shown.rollout.events) if shown.rollout is not None else 0,
            why=decision.why if decision is not None else "",
            error=error,
            has_moved=has_moved,
        )
        self.answer("rollout_act.html", model, characters=HISTORY_CHARACTERS)


class LookPage(RolloutPage):
    """One look, now: the task AdvanceRollout."""

    needs: ClassVar[dict[str, str]] = {"POST": OPERATOR, "GET": VIEWER}

    async def get(self, channel: str) -> None:
        """Show the rollout: somebody loads again what a look answered."""
        self.redirect(self.address(channel))

    async def post(self, channel: str) -> None:
        """Take it, in a process of its own."""
        await self.show(channel)  # of a channel that is none, a look would sign how often devices report
        done = await self.in_child(Order(what=LOOK, channel=channel))
        self.reader.note_look(channel, self.person.name, done.words)
        self.board.look_now(ROLLOUTS)
        self.go(f"rollouts/{quote(channel)}", done)


class StartPage(RolloutPage):
    """The start of a rollout by the plan of [rollout], after a dry run that says what it would do."""

    needs: ClassVar[dict[str, str]] = {"GET": OPERATOR, "HEAD": OPERATOR, "POST": OPERATOR}

    async def get(self, channel: str) -> None:
        """Ask for a release, and show what its rollout would do."""
        release = self.get_query_argument("release", "")
        await self._preview(channel, release, skip=bool(self.get_query_argument("skip", "")))

    async def post(self, channel: str) -> None:
        """Start it, and take the first look."""
        release, skip = self._wanted()
        who = for_history(self.person.name or "board", "name")
        check_name(release, "release id")
        order = Order(what=START, channel=channel, release=release, who=who, skip_incompatible=skip)
        try:
            await self.in_thread(lambda: self.reader.check_idle(channel, release))
            done = await self.in_child(order)
        except InputError as e:
            self.set_status(409)
            return await self._preview(channel, release, skip=skip, error=str(e))
        self.audit("rollout.start", channel=channel, release=release)
        self.board.look_now(ROLLOUTS)
        return self.done(channel, done.rollout)

    def _wanted(self) -> tuple[str, bool]:
        """Return the release, and whether devices that cannot run it are left out: of a form, or JSON."""
        if not self.sends_json:
            return self.get_body_argument("release", ""), bool(self.get_body_argument("skip", ""))
        wanted = self.sent_json(Wanted, '{"release": "RELEASE"}')
        return wanted.release, wanted.skip

    async def _preview(self, channel: str, release: str, *, skip: bool, error: str = "") -> None:
        view = await self.view()
        releases = await self.find(lambda: self.reader.releases(view, channel))
        preview = Done()
        if release and not error:
            try:
                check_name(release, "release id")
                await self.in_thread(lambda: self.reader.check_idle(channel, release))
                preview = await self.in_child(
                    Order(what=DRAFT, channel=channel, release=release, skip_incompatible=skip)
                )
            except InputError as e:
                error = str(e)
                self.set_status(409)
        record = preview.rollout
        stages = show_draft(record) if record is not None else ()
        model = Draft(
            channel=channel,
            releases=releases,
            release=release,
            skip=skip,
            rollout=record,
            stages=stages,
            words=preview.words,
            error=error,
            key_fault=await self.in_thread(self.reader.key.fault),
        )
        self.answer("rollout_start.html", model)


_NAME = r"([^/]+)"
HANDLERS = (
    (r"rollouts", RolloutsPage),
    (rf"rollouts/{_NAME}/start", StartPage),
    (rf"rollouts/{_NAME}/look", LookPage),
    (rf"rollouts/{_NAME}/all", PastRolloutsPage),
    (rf"rollouts/{_NAME}/()({'|'.join(rollout_acts.NAMES)})", ActPage),
    (rf"rollouts/{_NAME}/{_NAME}/({'|'.join(rollout_acts.NAMES)})", ActPage),
    (rf"rollouts/{_NAME}/{_NAME}/looks", LooksPage),
    (rf"rollouts/{_NAME}/{_NAME}/verdicts/{_NAME}", VerdictDocument),
    (rf"rollouts/{_NAME}", OneRolloutPage),
    (rf"rollouts/{_NAME}/{_NAME}", OneRolloutPage),
)
