"""Section [rollout] of luigi.cfg: how a release comes to the fleet; the task Rollout has the same options.

No % in the texts: argparse takes it for its own.
"""

from __future__ import annotations

import luigi

from luigi_tasks.settings.rollout import APPLY, BY, ON_BREACH, UNSIGNED


class rollout(luigi.Config):  # noqa: N801 - the class name is the section's name in luigi.cfg
    """Section [rollout]."""

    stages = luigi.Parameter(
        default="",
        description="devices or shares of the fleet, growing, that get a release one after the other; empty: "
        "the channel moves at once",
    )
    min_passed = luigi.IntParameter(
        default=1, description="devices that must have passed their probation before a stage can pass"
    )
    success = luigi.Parameter(
        default="95%", description="share of a stage's devices that must have passed their probation"
    )
    errors = luigi.Parameter(
        default="10%|2d",
        description="failures that halt a rollout: a share, and a number of devices for stages of which the "
        "share would be fewer; with | between",
    )
    quorum = luigi.Parameter(
        default="80%", description="share of a stage's devices that must have been heard of"
    )
    soak = luigi.Parameter(
        default="2h", description="time for which a stage is watched after its devices passed: s, m, h, d"
    )
    stage_timeout = luigi.Parameter(
        default="3d", description="time after which a stage that did not pass is paused: s, m, h, d"
    )
    silent_after = luigi.FloatParameter(
        default=3.0, description="missed reports after which a device counts as silent"
    )
    approve = luigi.Parameter(
        default="", description="numbers of the stages before which a person has to approve; empty: none"
    )
    only = luigi.Parameter(
        default="",
        description="devices that a rollout is for: site=NAME, class=NAME, device=ID or tags; empty: all",
    )
    excluded = luigi.Parameter(
        default="", description="devices that a rollout is not for, as in only; empty: none"
    )
    by = luigi.ChoiceParameter(
        choices=BY,
        default="device",
        description="what goes together: each device by itself, or all devices of a site",
    )
    apply = luigi.ChoiceParameter(
        choices=("", *APPLY),
        default="",
        description="when a device installs it; empty: in the window where one is given, else at once",
    )
    window = luigi.Parameter(
        default="", description="local time of the devices in which they install, such as 01:00-05:00"
    )
    pace = luigi.Parameter(
        default="0", description="devices that move at most, such as 2000/min or 500/h; 0: no limit"
    )
    on_breach = luigi.ChoiceParameter(
        choices=ON_BREACH,
        default="back",
        description="what a broken limit on failures does: the devices go back, or a person decides",
    )
    unsigned = luigi.ChoiceParameter(
        choices=UNSIGNED,
        default="approve",
        description="where reports of devices without a key are needed to pass a stage: from the third on "
        "each waits for a person, or they count as those that are signed (the broker is yours alone)",
    )
    report_only = luigi.Parameter(
        default="",
        description="checks of a verdict that report and do not judge, such as latency, drift; empty: none",
    )
    tolerance = luigi.Parameter(
        default="25%", description="change of latency and other figures against control that is tolerated"
    )
