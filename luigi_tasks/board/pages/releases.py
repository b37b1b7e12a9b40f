"""The pages of releases: all of them, one of them, two side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import tornado.web

from edge_client.contract.names import release_target
from luigi_tasks.board.page import Page
from luigi_tasks.board.paging import whole_number
from luigi_tasks.board.releases.facts import ACTS, describe_release
from luigi_tasks.board.releases.pairs import compare_releases
from luigi_tasks.board.releases.reader import SHORT_LIST_BYTES, apart
from luigi_tasks.board.releases.rows import DESCENDING, KINDS, list_releases
from luigi_tasks.board.templating import quote
from luigi_tasks.gate.words import describe_interval, percent

if TYPE_CHECKING:
    from collections.abc import Callable

    from luigi_tasks.board.releases.facts import ReleaseFacts
    from luigi_tasks.board.releases.judged_rows import JudgedList
    from luigi_tasks.board.releases.known import Kept, Published
    from luigi_tasks.board.releases.reader import ReleaseReader
    from luigi_tasks.board.releases.rows import ReleaseList
    from luigi_tasks.release.kept_snapshot import SnapshotChange

# A page made by the gate: no script, nothing from elsewhere, and no part of the board's origin.
REPORT_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
)
# A picture of a self-test is as large as the model's input.
_PICTURE_BYTES = 4 << 20
_NO_RELEASE = "no such release is signed here (any more)"


class ReleaseBase(Page):
    """What the pages of releases share."""

    section = "releases"

    @property
    def reader(self) -> ReleaseReader:
        """Reads the releases."""
        return self.board.releases

    def read(self) -> Published:
        """Return what is published, as new as what the board was told of."""
        return self.board.published()

    def devices(self) -> dict[str, int] | None:
        """Return the number of devices by release; None: unknown."""
        index = self.board.index
        return None if index.state().taken_at is None else dict(index.counts().releases)

    def find(self, release: str) -> Published:
        """Return what is published, with a release that must be among it; raises HTTPError."""
        published = self.read()
        if not published.has(release):
            self.refuse()
        return published

    def refuse(self, reason: str = _NO_RELEASE) -> NoReturn:
        """Answer that there is none."""
        raise tornado.web.HTTPError(404, reason=reason)

    def show(self, template: str, model: object) -> None:
        """Answer with a page or with JSON."""
        self.answer(
            template,
            model,
            kinds=KINDS,
            acts=ACTS,
            share=percent,
            between=describe_interval,
            release_path=lambda release: self.path(f"releases/{quote(release)}"),
        )


class ReleasesPage(ReleaseBase):
    """All signed releases."""

    async def get(self) -> None:
        """Show a page of them, or send on who chose two to compare."""
        first, second = self.get_query_argument("first", ""), self.get_query_argument("second", "")
        if first and second:
            self.redirect(self.path(f"releases/{quote(first)}/beside/{quote(second)}"), status=303)
            return
        sort, order = self.get_query_argument("sort", "made"), self.get_query_argument("order", DESCENDING)
        page = whole_number(self.get_query_argument("page", ""), 1)

        def read() -> ReleaseList:
            return list_releases(self.read(), self.devices(), sort=sort, order=order, page=page)

        self.show("releases.html", await self.in_thread(read))


class ReleasePage(ReleaseBase):
    """One release."""

    async def get(self, release: str) -> None:
        """Show it."""

        def read() -> ReleaseFacts:
            published = self.find(release)
            return describe_release(published, release, self.reader.kept(published, release), self.devices())

        self.show("release.html", await self.in_thread(read))


class BesidePage(ReleaseBase):
    """Two releases side by side."""

    async def get(self, first: str, second: str) -> None:
        """Show them."""
        from luigi_tasks.release.kept_snapshot import compare_snapshots  # noqa: PLC0415 - imports python-tuf

        releases = (first, second)

        def read() -> tuple[Published, tuple[Kept, Kept]]:
            published = self.find(first)
            if not published.has(second):
                self.refuse()
            return published, (self.reader.kept(published, first), self.reader.kept(published, second))

        published, kept = await self.in_thread(read)

        def compare() -> SnapshotChange:
            lists = [
                (one, found.snapshot) for one, found in zip(releases, kept, strict=True) if found.snapshot
            ]
            return compare_snapshots(apart(published.state), lists[0], lists[1], SHORT_LIST_BYTES)

        pictures = await self.reader.compare_pictures(releases, kept, lambda: self.in_thread(compare))
        devices = self.devices()
        self.show("releases_beside.html", compare_releases(published, releases, kept, pictures, devices))


class ReportBase(ReleaseBase):
    """A report of the gate, in a sandbox."""

    async def show_report(self, load: Callable[[], bytes]) -> None:
        """Answer with a report, if it is kept and proven."""
        from luigi_tasks.release.kept_gate import NotKeptError  # noqa: PLC0415 - imports python-tuf

        try:
            report = await self.in_thread(load)
        except NotKeptError:
            self.refuse("this report is not kept any more, or nothing proves it")
        self.set_header("Content-Security-Policy", REPORT_POLICY)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(report)


class ReportPage(ReportBase):
    """The gate's report of a release, as it was made."""

    async def get(self, release: str) -> None:
        """Show it in a sandbox."""
        from luigi_tasks.release.kept_gate import load_report  # noqa: PLC0415 - imports python-tuf

        await self.show_report(lambda: load_report(apart(self.find(release).state), release))


class ProofPage(ReleaseBase):
    """What `edge-keys verify` says of a release: each of its files is read, and each statement verified."""

    async def get(self, release: str) -> None:
        """Verify it."""
        proof = await self.in_thread(lambda: self.reader.prove(self.find(release), release))
        self.show("release_proof.html", proof)


class CandidatesPage(ReleaseBase):
    """What the gate judged lately, published or not."""

    # Who waits for its list holds up no page of releases.
    part = "candidates"

    async def get(self) -> None:
        """Show it."""

        def read() -> JudgedList:
            published = self.read()
            return self.reader.judged.read(published, apart(published.state))

        self.show("candidates.html", await self.in_thread(read))


class CandidateReport(ReportBase):
    """The gate's report of a candidate, as it was made."""

    async def get(self, name: str) -> None:
        """Show it in a sandbox."""
        from luigi_tasks.release.judged import load_judged_report  # noqa: PLC0415 - imports python-tuf

        await self.show_report(lambda: load_judged_report(apart(self.read().state), name))


class SelfTestPicture(ReleaseBase):
    """A signed picture that a device tests a release with."""

    async def get(self, release: str, file: str) -> None:
        """Answer with the picture."""

        def read() -> bytes:
            published = self.find(release)
            document = published.documents.get(release)
            named = () if document is None else [one.file for one in document.self_test]
            size = published.size(release, file) if file in named else None
            if size is None or size > _PICTURE_BYTES or not file.endswith(".png"):
                self.refuse("no such picture")
            return apart(published.state).read(release_target(release, file))

        picture = await self.in_thread(read)
        self.set_header("Content-Type", "image/png")
        self.set_header("Content-Security-Policy", "sandbox; default-src 'none'")
        self.set_header("Cache-Control", "private, max-age=86400")  # what is signed under an id never changes
        self.finish(picture)


HANDLERS = (
    (r"releases", ReleasesPage),
    (r"releases/([^/]+)", ReleasePage),
    (r"releases/([^/]+)/report", ReportPage),
    (r"releases/([^/]+)/proof", ProofPage),
    (r"releases/([^/]+)/beside/([^/]+)", BesidePage),
    (r"releases/([^/]+)/self-test/([^/]+)", SelfTestPicture),
    (r"candidates", CandidatesPage),
    (r"candidates/([^/]+)/report", CandidateReport),
)
