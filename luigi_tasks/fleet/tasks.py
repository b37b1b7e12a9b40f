"""The tasks of rollouts: start one, look at it, approve a stage, send it back; and of signatures that expire.

    luigi --module luigi_tasks Rollout --release RELEASE --stages 1d,3d,10%,50%,100%
    luigi --module luigi_tasks AdvanceRollout      # one look, from cron; waiting is success
    luigi --module luigi_tasks Approve
    luigi --module luigi_tasks Back
    luigi --module luigi_tasks RefreshMetadata     # signs again what is half expired, from cron

A task is done when it has run: each command is another task, so that cron looks each time, also under a
luigid that knows the task of an hour ago. Two at once have one id: the second ends with exit code 10. Exit
codes are those of every task (`[retcode]`); the look that halts, pauses or sends back a rollout fails (30),
so that cron mails it, and later looks at it succeed.
"""

from __future__ import annotations

import functools
import logging
import secrets
from typing import TYPE_CHECKING, Any

import luigi

from edge_client.contract.errors import InputError
from luigi_tasks.fleet.person import person
from luigi_tasks.logs import LUIGI_LOGGER, for_page, log_errors_as_messages
from luigi_tasks.luigid import Reschedulable
from luigi_tasks.settings.rollout_section import rollout as section
from luigi_tasks.settings.sections import load_settings

if TYPE_CHECKING:
    from luigi_tasks.fleet.actions import Fleet
    from luigi_tasks.fleet.records import RolloutRecord
    from luigi_tasks.settings.values import PipelineSettings

logger = logging.getLogger(LUIGI_LOGGER)


def parameters_of(kind: type[luigi.Task]) -> dict[str, luigi.Parameter[Any]]:
    """Return the parameters of a section or task, by name."""
    return dict(kind.get_params())


class OnceARun(Reschedulable):
    """A task that is done when it has run, whatever it found."""

    run_id = luigi.Parameter(default="", significant=False, description="names this run; filled in")

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Luigi's
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        log_errors_as_messages()
        self._is_done = False

    @classmethod
    def get_param_values(cls, params: Any, args: Any, kwargs: Any) -> list[tuple[str, Any]]:  # noqa: ANN401
        """Make each run another one: Luigi keeps tasks, and the world goes on."""
        values = super().get_param_values(params, args, kwargs)  # type: ignore[no-untyped-call]
        return [
            (name, value or secrets.token_hex(8) if name == "run_id" else value) for name, value in values
        ]

    @functools.cached_property
    def settings(self) -> PipelineSettings:
        """Settings of all sections."""
        return load_settings()

    @functools.cached_property
    def fleet(self) -> Fleet:
        """The rollouts, and the signed repository."""
        from luigi_tasks.fleet.actions import open_fleet  # noqa: PLC0415 - a Deploy does without

        return open_fleet(self.settings)

    def complete(self) -> bool:
        """Whether this task has run."""
        return self._is_done

    def run(self) -> None:
        """Do it, with what was found on luigid's page."""
        message = self.work()
        self._is_done = True
        if self.set_status_message is not None:
            self.set_status_message(for_page(message))
        logger.info("%s: %s", self.task_family, message)

    def work(self) -> str:
        """Do it; return in a sentence what was found and done."""
        raise NotImplementedError


class RefreshMetadata(OnceARun):
    """Sign again what is half expired, as far as its key is on this machine; tell what is due when.

    It fails where devices would be locked out soon by a role whose key is elsewhere.
    """

    def work(self) -> str:
        """Look, and sign; nothing due is success."""
        from luigi_tasks.release.renewal import refresh  # noqa: PLC0415 - as above

        return refresh(self.fleet.repository)


class FleetTask(OnceARun):
    """A look at a channel's rollout, or a decision about it."""

    channel = luigi.Parameter(default="", description="the channel; empty: [release] channel")

    @property
    def channel_name(self) -> str:
        """The channel."""
        return str(self.channel) or self.settings.release.channel

    def look(self) -> str:
        """Take one look; return what was found.

        Raises: RolloutHaltedError if this look halted the rollout, paused it or sent it back.
        """
        from luigi_tasks.fleet.standing import RolloutHaltedError  # noqa: PLC0415 - as above

        look = self.fleet.advance(self.channel_name)
        if look.is_halted:
            raise RolloutHaltedError(look.words)
        return look.words


class AdvanceRollout(FleetTask):
    """One look at the channel's rollout: judge, move it at most one step, tell."""

    def work(self) -> str:
        """Look; no rollout, and one that waits, are success."""
        return self.look()


class Approve(FleetTask):
    """Approve the next stage that waits for a person, then take one look."""

    stage = luigi.IntParameter(default=0, description="number of the stage, from 1; 0: the next that waits")
    why = luigi.Parameter(default="", description="reason, for the rollout's history")

    def work(self) -> str:
        """Approve and look; the stage opens if the evidence passes."""
        self.fleet.approve(self.channel_name, person(), str(self.why), int(self.stage))
        return self.look()


class Back(FleetTask):
    """Send the devices of the rollout back to the steady release; the release is withdrawn."""

    why = luigi.Parameter(default="", description="reason, for the rollout's history")

    def work(self) -> str:
        """Sign the way back; later looks end the rollout once the devices have left."""
        record = self.fleet.back(self.channel_name, person(), str(self.why))
        return (
            f"rollout {record.id} of release {record.release}: its devices go back to {record.from_release}"
        )


class Rollout(FleetTask):
    """Start the rollout of a signed release, and take the first look, which opens its first stage.

    The other options are the settings of [rollout], for this rollout alone.
    """

    release = luigi.Parameter(description="id of the release")
    variants = luigi.Parameter(
        default="", description="releases in its place by device class: CLASS=RELEASE, with commas"
    )
    supersede = luigi.BoolParameter(
        default=False, description="ends the rollout that runs, if it is in its first stage"
    )
    skip_incompatible = luigi.BoolParameter(
        default=False, description="leaves out devices that cannot run it; else they stop the rollout"
    )
    dry_run = luigi.BoolParameter(default=False, description="tells the stages, and changes nothing")

    @functools.cached_property
    def settings(self) -> PipelineSettings:
        """Settings, with the options of this command in the place of those of [rollout]."""
        given = {name: getattr(self, option) for name, option in OPTIONS.items()}
        return load_settings(rollout={name: value for name, value in given.items() if value})

    def work(self) -> str:
        """Start and look; one that runs already, or is done, is left as it is."""
        from luigi_tasks.fleet.plans import plan_of, read_variants  # noqa: PLC0415 - as above

        plan, release, channel = plan_of(self.settings.rollout), str(self.release), self.channel_name
        variants, skip = read_variants(str(self.variants)), bool(self.skip_incompatible)
        pointer = self.fleet.stand(channel).signed.channel
        if pointer is not None and pointer.release == release and not self.dry_run:
            return f"channel {channel} points to {release} already: all devices may have it"
        drafted = self.fleet.draft(
            channel, release, plan, person(), variants=variants, skip_incompatible=skip
        )
        if not drafted.stages:
            raise InputError(explain_nobody(drafted))
        if self.dry_run:
            return describe(drafted)
        self.fleet.start(
            channel,
            release,
            plan,
            person(),
            variants=variants,
            supersede=bool(self.supersede),
            skip_incompatible=skip,
        )
        return self.look()


def explain_nobody(drafted: RolloutRecord) -> str:
    """Return the message that a rollout would reach nobody, with the way out."""
    plan = drafted.plan
    only = f" and is {', '.join(plan.only)}" if plan.only else ""
    excluded = f" and is not {', '.join(plan.excluded)}" if plan.excluded else ""
    return (
        f"no registered device is on channel {drafted.channel}{only}{excluded}: nothing is started. "
        "`edge-fleet devices` shows channels, sites and classes; `edge-fleet enroll` adds devices"
    )


def describe(drafted: RolloutRecord) -> str:
    """Return the stages that would be opened, and how many devices cannot run the release."""
    from luigi_tasks.fleet.tables import count  # noqa: PLC0415 - a Deploy does without

    sizes = [0, *(one.size for one in drafted.stages)]
    stages = [
        f"stage {stage.number} ({drafted.plan.stages[stage.number - 1]}): {count(stage.size, 'device')}"
        + (f", {stage.size - before} more" if before else "")
        + ("; waits for a person" if stage.number in drafted.plan.approve else "")
        for before, stage in zip(sizes, drafted.stages, strict=False)
    ]
    return f"would roll out {drafted.release}: {'; '.join(stages)}. {drafted.events[0].why}"


# Setting of [rollout] -> option of the task; a class body can have no attribute `not`.
OPTIONS = {name: "not" if name == "excluded" else name for name in parameters_of(section)}
for _name, _setting in parameters_of(section).items():
    _option = luigi.Parameter(default="", description=f"{_setting.description}; empty: as in [rollout]")
    setattr(Rollout, OPTIONS[_name], _option)
    _option.__set_name__(Rollout, OPTIONS[_name])
