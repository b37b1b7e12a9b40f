"""The page Pipeline: the steps of the last run, the last runs, and what a person may start and stop."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import tornado.web

from edge_client.contract.errors import InputError
from luigi_tasks.board.page import Page
from luigi_tasks.board.pipeline_watch import tell_pipeline
from luigi_tasks.board.runs.kinds import KINDS, Kind, describe, why_not
from luigi_tasks.board.runs.view import read_pipeline, shown_run, steps_of_run

if TYPE_CHECKING:
    from typing import Any

    from luigi_tasks.board.runs.runs import Run

_LOG_BYTES = 4 << 20


class PipelinePage(Page):
    """Steps and runs."""

    section = "pipeline"

    async def get(self) -> None:
        """Show them."""
        link = self.luigid_page()
        model = await self.in_thread(lambda: read_pipeline(self.board.runs, self.board.luigid, link))
        self.answer("pipeline.html", model)

    def luigid_page(self) -> str:
        """Return the address of luigid's own page, where this reader's browser probably reaches it.

        On loopback it is reached by a browser of the same machine alone.
        """
        given = self.board.settings.board.luigid_url
        if given:
            return given
        page = self.board.luigid.page
        is_near = _is_loopback(self.request.host_name)
        return page if page and (is_near or not _is_loopback(urlsplit(page).hostname or "")) else ""


class StartPage(Page):
    """What a run will do, and the button that starts it."""

    section = "pipeline"

    async def get(self) -> None:
        """Show what the run will do."""
        kind = _offered(self.get_query_argument("task", ""))
        words = await self.in_thread(lambda: describe(kind, self.board.settings))
        self.answer(
            "pipeline_start.html",
            {
                "task": kind.task,
                "title": kind.title,
                "will_do": words,
                "why_not": why_not(kind) or "",
                "flags": kind.flags,
                "values": tuple(kind.values),
            },
        )

    async def post(self) -> None:
        """Start it; where one is running, that one is shown."""
        kind = _offered(self.get_body_argument("task", ""))
        arguments = [kind.task, *(flag for flag in kind.flags if self.get_body_argument(flag[2:], ""))]
        for option in kind.values:
            if value := self.get_body_argument(option[2:], "").strip():
                arguments += [option, value]
        name = await self.in_thread(lambda: self.board.runs.start(arguments, self.person))
        self.audit("board.run_started", run=name, command=" ".join(arguments))
        await _show(self, name)


class RunPage(Page):
    """One run of the board: how it ended, its steps, the end of its log."""

    section = "pipeline"

    async def get(self, name: str) -> None:
        """Show it."""
        self.answer("pipeline_run.html", await self.in_thread(lambda: self.read(name)))

    def read(self, name: str) -> dict[str, Any]:
        """Return what is shown; it blocks."""
        run = _find(self, name)
        return {
            "run": shown_run(self.board.runs, run),
            "steps": steps_of_run(self.board.runs, run, self.board.luigid.look()),
            "log": self.board.runs.log_tail(run.id),
        }


class StopPage(Page):
    """Stops a run."""

    section = "pipeline"

    async def post(self, name: str) -> None:
        """Stop it."""
        run = await self.in_thread(lambda: _find(self, name))
        await self.in_thread(lambda: self.board.runs.stop(run.id, self.person))
        self.audit("board.run_stopped", run=run.id, task=run.task)
        await _show(self, run.id)


class LogPage(Page):
    """The log of a run, as text."""

    section = "pipeline"

    async def get(self, name: str) -> None:
        """Send it."""
        run = await self.in_thread(lambda: _find(self, name))
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(await self.in_thread(lambda: self.board.runs.log_tail(run.id, _LOG_BYTES)))


def _offered(task: str) -> Kind:
    kind = KINDS.get(task)
    if kind is None or not kind.is_offered:
        names = ", ".join(one.task for one in KINDS.values() if one.is_offered)
        msg = f"no task that is started here; there are {names}"
        raise InputError(msg)
    return kind


def _find(page: Page, name: str) -> Run:
    try:
        return page.board.runs.find(name)
    except InputError as e:
        raise tornado.web.HTTPError(404, reason=str(e)) from e


async def _show(page: Page, name: str) -> None:
    """Answer an act with the run, and tell the pages that are open."""
    await tell_pipeline(page.board)
    run = await page.in_thread(lambda: shown_run(page.board.runs, page.board.runs.find(name)))
    page.go(f"pipeline/runs/{name}", {"run": run})


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


HANDLERS = (
    (r"pipeline", PipelinePage),
    (r"pipeline/start", StartPage),
    (r"pipeline/runs/([^/]+)", RunPage),
    (r"pipeline/runs/([^/]+)/stop", StopPage),
    (r"pipeline/runs/([^/]+)/log", LogPage),
)
