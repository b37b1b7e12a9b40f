"""A verdict is made again by somebody who has the bucket and the public keys."""

from __future__ import annotations

import msgspec
import pytest

from edge_client.contract.errors import InputError
from luigi_tasks.fleet.rollouts import Rollouts
from luigi_tasks.fleet.verification import verify_verdict
from tests.fakes.rollout_fleet import RolloutFleet


def test_verdict_is_made_again_from_what_it_names(tmp_path):
    fleet = RolloutFleet(tmp_path)
    release = fleet.publish(1, move=False).release
    fleet.machine().start("stable", release, fleet.plan(soak="1h"), "ann")
    looks = [fleet.look() for _ in range(2)]
    assert looks[0] == "open"
    fleet.follow()
    fleet.report()
    record = fleet.machine().advance("stable").record
    assert record is not None
    rollouts = Rollouts(fleet.machine().documents)
    found = [rollouts.verdict(key) for key in rollouts.verdicts(record)]
    verdicts = [one for one in found if one is not None]
    assert [one.result for one in verdicts] == ["inconclusive", "inconclusive"]

    def verify(verdict):
        return verify_verdict(rollouts.documents, fleet.settings.broker.fleet, record, verdict)

    fleet.now += 60
    fleet.enroll(["newcomer"])
    assert [verify(one).split(": ")[0] for one in verdicts] == [
        "made again from 2 snapshots, 4 rows and 4 registered devices"
    ] * 2
    better = msgspec.structs.replace(verdicts[0], result="pass")
    with pytest.raises(InputError, match="made again it differs"):
        verify(better)
    forged = dict.fromkeys(verdicts[0].snapshots, "00" * 32)
    other = msgspec.structs.replace(verdicts[0], snapshots=forged)
    with pytest.raises(InputError, match="was replaced by another"):
        verify(other)
