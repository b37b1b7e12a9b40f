"""The collector's benchmark measures a collector that rejects nothing."""

from __future__ import annotations

import fleet_collector


def test_few_devices_are_measured_as_many_are():
    figures = fleet_collector.measure(20, 2, 5)
    assert figures["collector_rejected"] == 0
    assert figures["snapshot_rows"] == figures["snapshot_rows_with_sums"] == 20
    assert figures["collector_signed_reports_per_s"] > 0
