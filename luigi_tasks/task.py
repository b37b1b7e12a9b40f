"""Base class of all tasks of the pipeline: parameters, workspace, progress, retries.

A task defines three things: `requires`, `address` (None while a result that it depends on is missing) and
`work`. Making a task reads nothing but the settings.

A task that a person or cron starts has no listing yet. It stands for the task of the pictures as they are:
it lists them when Luigi first asks whether it is complete, once, and requires the task for that listing. So
runs on other pictures are other tasks, and runs on the same pictures share all work.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import os
import time
from typing import TYPE_CHECKING, Any, TypeVar, cast

import luigi
from typing_extensions import Self

from edge_client.contract.errors import SettingsError, TransportError
from luigi_tasks import addresses
from luigi_tasks.dataset.sources import check_address
from luigi_tasks.evidence.ledger import EvidenceError
from luigi_tasks.logs import LUIGI_LOGGER, for_page, log_errors_as_messages
from luigi_tasks.luigid import Reschedulable, stay_known
from luigi_tasks.progress import TaskProgress
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.targets import DocumentTarget, PendingTarget
from luigi_tasks.workspace import Workspace, open_workspace

if TYPE_CHECKING:
    from luigi_tasks.progress import Progress
    from luigi_tasks.settings.values import PipelineSettings

# A network that fails for a minute is forgiven, and so are two lost machines: luigid counts them too.
KEEP_ALIVE_TRIES = 3
# A result that is never what was signed is being written by somebody else, all the time.
REPAIRS_AT_MOST = 3

TaskT = TypeVar("TaskT", bound="PipelineTask")

logger = logging.getLogger(LUIGI_LOGGER)


class PipelineTask(Reschedulable):
    """A step on one listing of one dataset under one set of settings."""

    # Whether the step loads TensorFlow, which may keep Luigi's threads waiting.
    holds_interpreter = False
    # Whether the address stays once it is known; Luigi asks for the target again and again.
    keeps_target = True

    # Not `dataset`: luigi takes --dataset for a short form of the section's options.
    pictures = luigi.Parameter(default="", description="where pictures are; empty: [dataset] url")
    listing = luigi.Parameter(default="", description="digest of the list of pictures; empty: as it is now")
    recipe = luigi.Parameter(default="", description="digest of all settings; filled in")
    run_id = luigi.Parameter(default="", description="names a run without a listing; filled in")
    replace_classes = luigi.BoolParameter(
        default=False,
        description="the release may have none of the deployed one's classes",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Luigi's
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        log_errors_as_messages()

    @classmethod
    def get_param_values(cls, params: Any, args: Any, kwargs: Any) -> list[tuple[str, Any]]:  # noqa: ANN401
        """Fill in what names the work, so that equal work has equal ids on every worker and machine."""
        values = dict(super().get_param_values(params, args, kwargs))  # type: ignore[no-untyped-call]
        if not (values["pictures"] and values["recipe"]):
            settings = _load(values["pictures"], replace_classes=values["replace_classes"])
            check_address(settings.dataset)
            values["pictures"] = settings.dataset.url
            values["recipe"] = values["recipe"] or addresses.recipe(settings)
        # A task without a listing is another one each time: Luigi keeps tasks, and pictures arrive.
        values["run_id"] = "" if values["listing"] else values["run_id"] or _new_run_id()
        return [(name, values[name]) for name, _ in params]

    @property
    def retry_count(self) -> int | None:
        """How often a step may fail while workers wait for each other; Luigi would try it for ever.

        Without --worker-keep-alive the run ends at the first failure, and the next run tries again.
        """
        return KEEP_ALIVE_TRIES if luigi.worker.worker().keep_alive else None

    @functools.cached_property
    def workspace(self) -> Workspace:
        """Resources of the steps of this run; the tasks of one run share them.

        Raises: SettingsError if this process has other settings than those that the task was made with.
        """
        settings = _load(str(self.pictures), replace_classes=bool(self.replace_classes))
        if addresses.recipe(settings) != self.recipe:
            msg = f"{self.task_id}: made with other settings than this worker has; use one luigi.cfg for all"
            raise SettingsError(msg)
        return open_workspace(settings, str(self.listing))

    def clone(self, cls: type[TaskT] | None = None, **kwargs: Any) -> TaskT:  # noqa: ANN401 - any parameter
        """Return a task of the same run."""
        made = super().clone(cls, listing=self.workspace.listing, run_id="", **kwargs)  # type: ignore[no-untyped-call]
        made.__dict__["workspace"] = self.workspace
        return cast("TaskT", made)

    def of_now(self) -> Self:
        """Return this task for the pictures as they are now: the task itself, where it has a listing."""
        return self if self.listing else self.clone(type(self))

    def complete(self) -> bool:
        """Whether there is nothing to do."""
        return bool(super().complete() if self.listing else self.of_now().complete())  # type: ignore[no-untyped-call]

    def _requires(self) -> list[luigi.Task]:
        """Return what Luigi runs before this task (its hook for base classes)."""
        required: list[luigi.Task] = super()._requires() if self.listing else [self.of_now()]  # type: ignore[no-untyped-call]
        return required

    def address(self) -> str | None:
        """Return the key of the result; None while a result that decides it does not exist yet."""
        raise NotImplementedError

    def output(self) -> DocumentTarget | PendingTarget:
        """Target at the task's address."""
        ledger = self.workspace.ledger
        epoch, known = self.__dict__.get("_target", (0, None))
        if known is not None and known.ledger is not ledger:  # Luigi keeps tasks from one build to the next
            known = None
        if known is not None and self.keeps_target and epoch == ledger.epoch:
            return cast("DocumentTarget", known)
        key = self.address()
        if key is None:
            return PendingTarget()
        if known is None or known.key != key:
            known = DocumentTarget(ledger, key, self.evidence)
        self.__dict__["_target"] = (ledger.epoch, known)
        return cast("DocumentTarget", known)

    def required(self) -> list[luigi.Task]:
        """Return the tasks whose results this one is made of."""
        return list(luigi.task.flatten(self.requires()))  # type: ignore[no-untyped-call]

    def evidence(self) -> list[str]:
        """Return the keys of the records that the result is made of: those of the required tasks."""
        return addresses_of(*self.required())

    def own_target(self) -> DocumentTarget:
        """Return the target of a step whose address is known.

        Raises: TransportError if a result that it depends on is gone.
        """
        target = self.output()
        if isinstance(target, PendingTarget):
            msg = f"{self.task_id}: a result of an earlier step is gone from the store; run again"
            raise TransportError(msg)
        return target

    def run(self) -> Any:  # noqa: ANN401 - a generator where a task finds its requirements as it runs
        """Do the step, with its progress on luigid's page.

        Its address may have become known only now, and the result may exist already: pictures that were
        only touched, or moved to another folder, need no new model.
        """
        self.workspace.ledger.begin()
        if self.complete():
            self.tell("found done")
            return
        self.workspace.ledger.check_signer()
        started = time.monotonic()
        with stay_known(self) if self.holds_interpreter else contextlib.nullcontext():
            message = self._work_on_what_was_signed()
        self.tell(message)
        logger.info("%s: %s", self.task_family, message)
        logger.info("%s took %.1f s", self.task_family, time.monotonic() - started)

    def _work_on_what_was_signed(self) -> str:
        """Do the step; what turns out not to be what was signed is computed again first."""
        for _ in range(REPAIRS_AT_MOST):
            try:
                with TaskProgress(self) as progress:
                    return self.work(progress)
            except EvidenceError:  # it was given up, with a warning
                for one in self.required():
                    make_again(one)
        with TaskProgress(self) as progress:
            return self.work(progress)

    def work(self, progress: Progress) -> str:
        """Do the step; return its result in one line."""
        raise NotImplementedError

    def link(self, url: str) -> None:
        """Show a link on luigid's page, where Luigi runs the task."""
        if self.set_tracking_url is not None:
            self.set_tracking_url(url)

    def tell(self, message: str) -> None:
        """Show a message on luigid's page, where Luigi runs the task."""
        if self.set_status_message is not None:
            self.set_status_message(for_page(message))


def make_again(task: luigi.Task) -> None:
    """Do a task that is not done any more, and first those that it needs.

    In this process: luigid takes no task back within seconds of its end (`stable_done_cooldown_secs`).
    """
    if task.complete():
        return
    for one in task.deps():
        make_again(one)
    for more in task.run() or ():
        for one in luigi.task.flatten(more):
            make_again(one)


def addresses_of(*tasks: luigi.Task) -> list[str]:
    """Return the keys of the results of tasks that have one."""
    targets = [one.output() for one in tasks]
    return [one.key for one in targets if isinstance(one, DocumentTarget)]


def _load(pictures: str, *, replace_classes: bool) -> PipelineSettings:
    """Read the settings; what the command line says of classes counts before luigi.cfg."""
    gate = {"gate": {"replace_classes": True}} if replace_classes else {}
    return load_settings(pictures=pictures, **gate)


def _new_run_id() -> str:
    """Return e.g. `20261127T090012.123456-host-4711`."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return f"{now:%Y%m%dT%H%M%S.%f}-{os.uname().nodename}-{os.getpid()}"
