"""Progress of a Luigi run on a terminal, from what luigid's own page shows."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from local_services import Scheduler
    from rich.console import Console

DEPLOY_LIMIT_S = 1800.0


def show_tasks(process: subprocess.Popen[bytes], scheduler: Scheduler, console: Console) -> None:
    """Draw a bar for each task, from what luigid's own page shows, until the run ends."""
    columns = (
        TextColumn("  {task.description:<16}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[state]:<8}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}"),
    )
    bars: dict[str, Any] = {}
    deadline = time.monotonic() + DEPLOY_LIMIT_S
    with Progress(*columns, console=console) as progress:
        while True:
            ended = process.poll() is not None
            for identity, task in sorted(
                luigi_tasks(scheduler).items(), key=lambda item: item[1].get("time_running") or 9e9
            ):
                if task["status"] == "DONE" and identity not in bars:
                    continue  # done by an earlier run
                if identity not in bars:
                    bars[identity] = progress.add_task(task["name"], total=100, state="", message="")
                done = task["status"] == "DONE"
                progress.update(
                    bars[identity],
                    completed=100 if done else task.get("progress") or 0,
                    state=str(task["status"]).lower(),
                    message=task.get("message") or "",
                )
                if done:
                    progress.stop_task(bars[identity])
            if ended:
                return
            if time.monotonic() > deadline:
                process.kill()
                sys.exit(f"the run took over {DEPLOY_LIMIT_S:.0f} s")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.3)


def luigi_tasks(scheduler: Scheduler) -> dict[str, dict[str, Any]]:
    """Return luigid's record of each task."""

    def ask(method: str, **arguments: object) -> Any:  # noqa: ANN401
        query = urllib.parse.urlencode({"data": json.dumps(arguments)})
        with urllib.request.urlopen(f"{scheduler.url}/api/{method}?{query}", timeout=10) as answer:  # noqa: S310
            return json.load(answer)["response"]

    tasks: dict[str, dict[str, Any]] = ask("task_list", status="", upstream_status="")
    for identity, task in tasks.items():
        message = ask("get_task_status_message", task_id=identity)["statusMessage"]
        tasks[identity] = {
            **task,
            "message": message,
            "progress": ask("get_task_progress_percentage", task_id=identity)["progressPercentage"],
        }
    return tasks
