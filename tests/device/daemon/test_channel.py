"""One channel followed in this process: what its status, and Home Assistant, say of the channel's release."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import threading
import time

import msgspec
import pytest
from local_services import wait_until

from edge_client.contract.documents import encode_document
from edge_client.contract.errors import DeviceError
from edge_client.contract.messages import Announcement
from edge_client.contract.rollout import EVERYBODY, NOBODY, Member, rollout_hash
from edge_client.daemon import channel
from edge_client.daemon.channel import ChannelFollower
from edge_client.reporting.homeassistant import discovery_messages
from edge_client.serving.probation import FAILURES
from edge_client.settings.file import load_settings
from edge_client.sources.source import Frame
from edge_client.update import schedule
from edge_client.update.schedule import SHORTEST_INTERVAL_S
from edge_client.update.slots import Slots
from tests.fakes.tiny_model import plain_picture
from tests.fakes.tiny_release import tiny_release

FRAME = Frame("camera", plain_picture("red"))
LIMIT_S = 60.0


class Highest(random.Random):
    """Draws the largest number of each range."""

    def uniform(self, _a: float, b: float) -> float:
        return b


class Lowest(random.Random):
    """Draws the smallest number of each range."""

    def uniform(self, a: float, _b: float) -> float:
        return a


class Followed:
    """A follower whose update checks are real, and whose frames come from the test."""

    def __init__(self, folder, repository) -> None:
        (folder / "root.json").write_bytes(repository.root)
        file = folder / "device.toml"
        file.write_text(
            f'[device]\nid = "camera-1"\nstate_dir = "{folder}/state"\n[trust]\nroot = "root.json"\n'
            f'[store]\nbase_url = "{repository.url}"\n[source]\npath = "{folder}"\n'
            "[probation]\nframes = 40\n[update]\nmin_free_bytes = 0\n"
        )
        self.settings = load_settings(file)
        self._stop = threading.Event()

    def start(self, *, chance: random.Random | None = None, **update) -> None:
        """Start the follower with some settings of [update]."""
        changed = dataclasses.replace(self.settings.update, **update)
        self.follower = ChannelFollower(
            dataclasses.replace(self.settings, update=changed),
            stop=self._stop,
            may_serve=threading.Event(),
            publish_status=lambda _payload: True,
            chance=chance,
        )
        self._thread = threading.Thread(target=self.follower.follow)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self.follower.end()
        self._thread.join(LIMIT_S)

    @property
    def status(self):
        return self.follower.board.status

    def announce(self, release: str) -> None:
        announcement = Announcement(channel="stable", release=release, announced_at="now")
        self.follower.triggers.announce(encode_document(announcement))

    def wait(self, condition, what: str) -> None:
        wait_until(lambda: condition(self.status), what, LIMIT_S)

    def wait_release(self, release: str) -> None:
        self.wait(lambda s: s.release == release and s.state == "serving", f"release {release}")


@pytest.fixture
def followed(tmp_path, repository):
    followed = Followed(tmp_path, repository)
    yield followed
    followed.close()


def shown_by_home_assistant(status):
    """The state of the update entity, as Home Assistant renders it."""
    jinja2 = pytest.importorskip("jinja2", reason="templates are Home Assistant's to render")
    [config] = [
        json.loads(payload)
        for topic, payload in discovery_messages("homeassistant", "fleet", "camera-1").items()
        if topic.endswith("/model/config")
    ]
    environment = jinja2.Environment()
    environment.filters["to_json"] = json.dumps
    value = json.loads(msgspec.json.encode(status))
    return json.loads(environment.from_string(config["value_template"]).render(value_json=value))


def break_serving(follower) -> None:
    """From now on, the serving release fails on every frame."""

    def fail(_pixels):
        raise DeviceError("broken")

    follower._serving._holder.current.classify = fail


def test_a_release_for_other_devices_is_never_offered_whatever_happens_next(followed, repository):
    """A verdict on another release changes the sentence `why`, and not what the button would install."""
    first = repository.publish_tiny(0).release
    followed.start()
    followed.wait_release(first)
    assert (followed.status.decision, followed.status.offered) == ("serves", None)
    second = repository.publish_tiny(1).release
    followed.announce(second)
    followed.wait_release(second)
    third = repository.publish_tiny(2).release
    repository.point("stable", third, 1e-9)
    followed.announce(third)
    followed.wait(lambda s: s.latest == third, "the third release to be known")
    assert (followed.status.decision, followed.status.offered) == ("not_in_share", None)
    break_serving(followed.follower)
    for _ in range(FAILURES):
        assert followed.follower.classify(FRAME) is None
    followed.wait(lambda s: "rolled back" in s.why, "the second release to be rolled back")
    status = followed.status
    assert (status.release, status.latest) == (first, third)
    assert (status.decision, status.offered) == ("not_in_share", None)
    shown = shown_by_home_assistant(status)
    assert (shown["installed_version"], shown["latest_version"]) == (first, first)


def test_a_release_that_waits_for_consent_is_offered_until_it_serves(followed, repository):
    first = repository.publish_tiny(0).release
    followed.start(automatic=False)
    followed.wait_release(first)
    second = repository.publish_tiny(1).release
    followed.announce(second)
    followed.wait(lambda s: s.latest == second, "the second release to be known")
    status = followed.status
    assert (status.decision, status.offered, status.release) == ("held", second, first)
    shown = shown_by_home_assistant(status)
    assert (shown["installed_version"], shown["latest_version"]) == (first, second)
    before = status.serving_since
    assert before is not None
    followed.follower.request_update()
    followed.wait_release(second)
    status = followed.status
    assert (status.decision, status.offered) == ("serves", None)
    assert status.serving_since is not None
    assert status.serving_since > before


def test_a_release_that_fails_on_frames_is_rolled_back_and_tried_again_later(followed, repository):
    first = repository.publish_tiny(0).release
    followed.start()
    followed.wait_release(first)
    second = repository.publish_tiny(1).release
    followed.announce(second)
    followed.wait_release(second)
    assert followed.status.decision == "serves"
    break_serving(followed.follower)
    for _ in range(FAILURES):
        followed.follower.classify(FRAME)
    followed.wait(lambda s: s.decision == "postponed", "the second release to be rolled back")
    assert (followed.status.release, followed.status.offered, followed.status.refused) == (first, None, None)
    assert followed.status.retry_at is not None
    assert "frames failed" in followed.status.last_error


def test_a_release_that_fails_its_self_test_is_refused_and_not_offered(followed, repository):
    first = repository.publish_tiny(0).release
    followed.start()
    followed.wait_release(first)
    broken = repository.publish_tiny(5, model=b"no model").release
    followed.announce(broken)
    followed.wait(lambda s: s.refused == broken, "the refusal")
    status = followed.status
    assert (status.latest, status.decision, status.offered) == (broken, "refused", None)
    assert shown_by_home_assistant(status)["latest_version"] == first


@pytest.mark.slow
def test_a_rollout_reaches_the_devices_that_it_includes_and_is_no_lie_to_the_others(followed, repository):
    """From a device that has nothing, past a stage that does not include it, to the release and back."""
    steady = repository.publish_tiny(0).release
    repository.delegate()
    document, files = tiny_release(1)
    repository.add({f"releases/{document.release}/{name}": data for name, data in files.items()})
    repository.sign()
    fields = {"id": "r1", "release": document.release, "from_release": steady}

    place = rollout_hash("r1", "device", Member("camera-1"))
    repository.roll_out(**fields, threshold=place, heartbeat_s=600.0)
    followed.start(chance=Lowest())
    followed.wait_release(steady)
    followed.wait(lambda s: s.decision == "serves", "the first decision")
    followed.announce(document.release)
    asked = len(repository.requests)
    wait_until(lambda: len(repository.requests) > asked, "a look", LIMIT_S)
    followed.wait(lambda s: "for other devices so far" in s.why, "the reason")
    status = followed.status
    assert (status.rollout, status.steady, status.latest, status.last_error) == ("r1", steady, steady, None)
    assert followed.follower.pace.heartbeat_s == 600.0

    repository.roll_out(**fields, threshold=EVERYBODY, apply="window", window="nightly")
    announced_again(followed, document.release)
    followed.wait(lambda s: s.decision == "held", "the window to hold the release")
    status = followed.status
    assert (status.offered, status.waits_for, status.release) == (document.release, "window", steady)
    assert "has no window that can be read" in status.why
    followed.follower.request_update()
    followed.wait_release(document.release)
    followed.wait(lambda s: s.decision == "serves", "the decision")
    assert followed.status.probation
    assert "rollout r1 of channel stable has it for this device" in followed.status.why

    repository.roll_out(**fields, threshold=NOBODY)
    announced_again(followed, steady)
    followed.wait_release(steady)
    followed.wait(lambda s: "is taken back from all devices" in s.why, "the reason")
    assert not followed.status.probation
    assert followed.status.refused is None

    repository.roll_out(schema=2, **fields, threshold=EVERYBODY)
    announced_again(followed, document.release)
    followed.wait(lambda s: s.warning is not None, "the warning")
    assert "the rollout is not followed" in followed.status.warning
    assert followed.status.release == steady


def announced_again(followed, release: str) -> None:
    """Announce what the schedule did not hear before: the same text is no news for an hour."""
    announcement = Announcement(channel="stable", release=release, announced_at=str(time.monotonic()))
    followed.follower.triggers.announce(encode_document(announcement))


def test_a_new_device_moves_on_from_the_steady_release_by_itself(followed, repository):
    steady = repository.publish_tiny(0).release
    repository.delegate()
    document, files = tiny_release(1)
    repository.add({f"releases/{document.release}/{name}": data for name, data in files.items()})
    repository.sign()
    repository.roll_out(id="r1", release=document.release, threshold=EVERYBODY)
    followed.start()
    followed.wait_release(document.release)
    assert followed.status.previous == steady
    assert followed.status.probation


@pytest.mark.slow
def test_a_new_device_that_refuses_the_steady_release_tries_the_other_one_at_once(followed, repository):
    steady = repository.publish_tiny(5, device_class="other").release
    repository.delegate()
    document, files = tiny_release(1)
    repository.add({f"releases/{document.release}/{name}": data for name, data in files.items()})
    repository.sign()
    repository.roll_out(id="r1", release=document.release, threshold=EVERYBODY)
    followed.start()
    followed.wait_release(document.release)
    assert set(followed.follower._serving._slots.refused) == {steady}


MALFORMED = {
    b"not json": "not a valid Announcement",
    b"": "not a valid Announcement",
    b"\xff\xfe\x00": "not a valid Announcement",
    b"[" * 4000: "not a valid Announcement",
    b'{"channel": "stable"}': "missing required field `release`",
    b'{"release": "' + b"x" * 200_000 + b'"}': "at most 4096",
    b'{"channel": "canary", "release": "x", "announced_at": ""}': "is for channel 'canary'",
    b'{"channel": "stable", "release": "x\\nERROR y", "announced_at": ""}': "release id",
    b'{"schema": 2, "channel": "stable", "release": "x", "announced_at": ""}': "schema 2",
}


def is_logged(caplog, text: str) -> bool:
    return text in caplog.text


def test_a_malformed_announcement_is_reported_and_starts_no_update_check(
    followed, repository, caplog, monkeypatch
):
    # The follower looks at noise so often; a check that one announcement starts would come as soon.
    interval_s = 0.05
    for module in (channel, schedule):
        monkeypatch.setattr(module, "SHORTEST_INTERVAL_S", interval_s)
    first = repository.publish_tiny(0).release
    followed.start()
    followed.wait_release(first)
    asked = len(repository.requests)
    for payload, reason in MALFORMED.items():
        caplog.clear()
        followed.follower.triggers.announce(payload)
        wait_until(functools.partial(is_logged, caplog, reason), f"{reason!r} in the log", LIMIT_S)
    assert "was not a valid announcement; see the log" in followed.status.last_error
    time.sleep(20 * interval_s)  # a check would have started by then
    assert len(repository.requests) == asked
    assert followed.status.release == first


def test_a_flood_of_old_news_puts_no_poll_off(followed, repository):
    """Announcements come faster than the poll interval, until the poll has found the release."""
    first = repository.publish_tiny(0).release
    followed.start(poll_s=2.5)  # longer than the pause after an announcement that is no news
    followed.wait_release(first)
    second = repository.publish_tiny(1).release
    deadline = time.monotonic() + LIMIT_S
    while followed.status.release != second:
        assert time.monotonic() < deadline
        followed.announce(first)
        time.sleep(0.01)


def test_a_true_announcement_is_heard_among_junk_and_lies(followed, repository):
    """One true announcement in a flood that goes on; the next poll is an hour away."""
    first = repository.publish_tiny(0).release
    followed.start()
    followed.wait_release(first)
    second = repository.publish_tiny(1).release
    deadline = time.monotonic() + LIMIT_S
    followed.follower.triggers.announce(b"junk")
    followed.announce("lie")
    followed.announce(second)
    number = 0
    while followed.status.release != second:
        assert time.monotonic() < deadline
        number += 1
        followed.follower.triggers.announce(b"junk %d" % number)
        followed.announce("lie")
        time.sleep(0.01)


def test_a_spread_announcement_is_followed_after_the_drawn_delay(followed, repository):
    """Three announcements of one release wait for one drawn instant, and the store is not asked before."""
    first = repository.publish_tiny(0).release
    followed.start(spread_s=2.0, chance=Highest())
    followed.wait_release(first)
    time.sleep(SHORTEST_INTERVAL_S)  # from here on, only the spread delays the next check
    asked, announced = len(repository.requests), time.monotonic()
    second = repository.publish_tiny(1).release
    for _ in range(3):
        followed.announce(second)
    wait_until(lambda: len(repository.requests) > asked, "the update check", LIMIT_S)
    assert time.monotonic() - announced >= 2.0
    followed.wait_release(second)


def answer(followed, *, until, what: str) -> None:
    """Classify frames, each also by the release in shadow mode."""

    def one_more() -> bool:
        if (found := followed.follower.classify(FRAME)) is not None:
            followed.follower.compare(FRAME, found)
        return bool(until(followed.status))

    wait_until(one_more, what, LIMIT_S)


def fail_probation(followed) -> None:
    break_serving(followed.follower)
    for _ in range(FAILURES):
        assert followed.follower.classify(FRAME) is None


def test_a_rollback_that_ends_shadow_mode_voids_the_decision_until_the_next_check(followed, repository):
    shadow = dataclasses.replace(followed.settings.shadow, seconds=0.2)
    followed.settings = dataclasses.replace(followed.settings, shadow=shadow)
    first = repository.publish_tiny(0).release
    followed.start()
    followed.wait_release(first)
    second = repository.publish_tiny(1).release
    followed.announce(second)
    followed.wait(lambda s: (s.latest, s.decision) == (second, "install"), "shadow mode")
    answer(followed, until=lambda s: s.release == second, what="the second release to serve")
    third = repository.publish_tiny(2).release
    followed.announce(third)
    followed.wait(lambda s: (s.latest, s.decision) == (third, "install"), "the third one in shadow mode")
    repository.stop()
    fail_probation(followed)
    followed.wait(lambda s: "rolled back" in s.why, "the second release to be rolled back")
    assert (followed.status.release, followed.status.latest) == (first, third)
    assert (followed.status.decision, followed.status.offered) == ("", None)
    repository.start()
    followed.wait(lambda s: s.decision == "install", "a check without a poll or an announcement")
    assert followed.follower._serving.shadow_release == third


def test_a_rollback_that_the_disk_cannot_record_does_not_show_its_release_as_serving(
    followed, repository, monkeypatch
):
    monkeypatch.setattr(channel, "SETTLE_RETRY_S", 3.0)
    first = repository.publish_tiny(0).release
    followed.start()
    followed.wait_release(first)
    second = repository.publish_tiny(1).release
    followed.announce(second)
    followed.wait_release(second)
    write = Slots._write

    def refuse(self, **changes):
        raise DeviceError("disk full")

    monkeypatch.setattr(Slots, "_write", refuse)
    asked = len(repository.requests)
    fail_probation(followed)
    for _ in range(2):  # after the rollback, and after the check that finds the second release current
        followed.wait(lambda s: s.release == first, "the first release to serve from memory")
        status = followed.status
        assert (status.latest, status.decision, status.serving_since) == (second, "", None)
        wait_until(lambda: len(repository.requests) > asked, "the next check", LIMIT_S)
        followed.wait(lambda s: "could not record" in s.why, "its outcome")
    monkeypatch.setattr(Slots, "_write", write)
    followed.wait(lambda s: s.decision == "postponed", "the rollback to be recorded")
    status = followed.status
    assert status.release == first
    assert status.serving_since is not None
