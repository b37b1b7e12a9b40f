"""`Deploy` from first pictures to other classes: what is published, held and refused for its evidence."""

from __future__ import annotations

import json

import luigi
import pytest

from edge_client.contract.names import announcement_topic, events_topic
from luigi_tasks import roll_back, task
from luigi_tasks.pipeline import Deploy
from luigi_tasks.roll_back import RollBack
from tests.fakes.aws_iot import AwsIotBroker, load_policy
from tests.fakes.site import Site, noise, plain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Of so few pictures, too few are in the hold-out to tell a good classifier from a constant answer.
FEW, ENOUGH = 16, 60


@pytest.fixture
def broker():
    """A broker that hangs up on all that the pipeline's policy for AWS IoT Core does not allow."""
    with AwsIotBroker({"": load_policy("aws-iot-policy-pipeline.json", "evidence")}) as broker:
        yield broker


@pytest.fixture
def site(tmp_path, small_weights, broker, monkeypatch):
    site = Site(tmp_path, small_weights, (broker.host, broker.port))
    for module in (task, roll_back):
        monkeypatch.setattr(module, "load_settings", site.load_settings)
    with site.listening():
        yield site


def test_a_release_is_published_held_and_refused_by_its_evidence(site, broker):
    # Labels at random, 90/10: no better than a constant answer.
    said = site.deploy({**noise("many", 135), **noise("few", FEW)})
    assert "is not published, the gate refused: " in said
    assert "is no better than always answering 'many'" in said
    assert site.released is None

    # Few pictures, first release: published, and what is thin is said wherever a person looks.
    said = site.deploy({**plain("red", "red", FEW), **plain("blue", "blue", FEW)})
    first = site.released
    assert f"Release {first} passed on thin evidence: " in said
    assert "about 5 more pictures (1 of them in the hold-out) would do" in said
    assert site.document.evidence == "; ".join(site.verdict.thin)
    assert site.document.evidence in said

    # A replacement on thin evidence is held: the run succeeds, and the verdict stays on record.
    to_learn_from = plain("red", "red", 1, start=FEW + 3)
    pictures = {**plain("red", "red", FEW), **to_learn_from, **plain("blue", "blue", FEW)}
    said = site.deploy(pictures)
    assert "is not published, the gate held: not enough evidence: " in said
    assert "more pictures" in said
    assert (site.released, site.verdict.outcome) == (first, "thin")
    assert Deploy(pictures=str(site.pictures)).complete()

    # Enough pictures; and without a broker nothing is announced, but all else goes on.
    address, site.broker = site.broker, ("", 1883)
    assert site.deploy({**plain("red", "red", ENOUGH), **plain("blue", "blue", ENOUGH)}) == ""
    second = site.released
    assert second not in {None, first}
    assert site.document.evidence == ""

    site.broker = address

    # All classes replaced: refused, unless that is meant.
    other = {**plain("rose", "red", ENOUGH), **plain("iris", "blue", ENOUGH)}
    assert "none of the deployed release's classes is left ('blue', 'red')" in site.deploy(other)
    assert site.released == second
    assert site.deploy(other, replace_classes=True) == ""
    assert site.document.labels == ("iris", "rose")

    announced = json.loads(broker.retained[announcement_topic("evidence", "stable")])
    assert announced["release"] == site.released
    assert broker.refusals == []
    # Two were refused and one was held: each was told once, whatever runs followed.
    assert [topic for _, act, topic, _ in broker.log if act == "publish"].count(events_topic("evidence")) == 3

    # A rollback needs no broker either.
    site.broker = ("", 1883)
    assert luigi.build([RollBack(to=second)], local_scheduler=True, log_level="WARNING")
    assert site.released == second
