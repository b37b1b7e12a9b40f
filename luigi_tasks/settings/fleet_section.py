"""Section [fleet] of luigi.cfg: the collector, which hears what the devices report, and who is told."""

from __future__ import annotations

import luigi


class fleet(luigi.Config):  # noqa: N801 - the class name is the section's name in luigi.cfg
    """Section [fleet]."""

    collector = luigi.Parameter(
        default="collector", description="name of this collector, under which the registry has its public key"
    )
    collector_key_file = luigi.Parameter(
        default="keys/collector.pem", description="private key that signs the collector's snapshots"
    )
    database_file = luigi.Parameter(
        default="~/.local/state/edge-fleet/collector.sqlite",
        description="SQLite database of the collector, on a local disk",
    )
    share_group = luigi.Parameter(
        default="",
        description="several collectors with the same name here share the reports ($share); empty: this one "
        "hears all",
    )
    old_statuses = luigi.BoolParameter(
        default=True,
        parsing=luigi.BoolParameter.EXPLICIT_PARSING,
        description="whether the statuses of clients of before there were reports are read too; a large "
        "fleet without such clients is spared the messages",
    )
    period_s = luigi.IntParameter(
        default=3600, description="length of the periods that figures are summed over"
    )
    keep_periods = luigi.IntParameter(
        default=96, description="periods whose sums are kept: the longest stage, and the hours before it"
    )
    snapshot_s = luigi.FloatParameter(default=300.0, description="time between two snapshots in the bucket")
    sampled_devices = luigi.IntParameter(
        default=2000,
        description="devices of each release whose sums go into a snapshot, drawn by a hash; of the others "
        "only the last report does",
    )
    keep_all_h = luigi.FloatParameter(default=6.0, description="all snapshots of so many hours stay")
    keep_hourly_days = luigi.FloatParameter(
        default=7.0, description="one snapshot an hour of so many days stays"
    )
    keep_daily_days = luigi.FloatParameter(
        default=90.0,
        description="one snapshot a day of so many days stays; those that verdicts name do anyway",
    )
    heartbeat_s = luigi.FloatParameter(
        default=0.0,
        description="longest time between two reports of a device, which AdvanceRollout signs for the "
        "devices; 0: their own settings up to 833 devices, then 28 reports a second of all of them together",
    )
    max_reports_per_min = luigi.IntParameter(
        default=120, description="reports a minute that one device may send; more are counted and ignored"
    )
    max_unknown_devices = luigi.IntParameter(
        default=10000,
        description="devices that are not in the registry and are shown all the same; of more, those that "
        "were silent for longest are forgotten",
    )
    webhooks_file = luigi.Parameter(
        default="",
        description="file with a line for each receiver of signed webhooks: its https address and its secret "
        "(whsec_...); empty: none",
    )
