"""One channel followed in this process: what its status, and Home Assistant, say of the channel's release."""

from __future__ import annotations

import dataclasses
import json
import threading

import msgspec
import pytest
from local_services import wait_until

from edge_client.contract.documents import encode_document
from edge_client.contract.errors import DeviceError
from edge_client.contract.messages import Announcement
from edge_client.daemon.channel import ChannelFollower
from edge_client.reporting.homeassistant import discovery_messages
from edge_client.serving.probation import FAILURES
from edge_client.settings.file import load_settings
from edge_client.sources.source import Frame
from tests.fakes.tiny_model import plain_picture

FRAME = Frame("camera", plain_picture("red"))
LIMIT_S = 20.0


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

    def start(self, *, automatic: bool = True) -> None:
        update = dataclasses.replace(self.settings.update, automatic=automatic)
        self.follower = ChannelFollower(
            dataclasses.replace(self.settings, update=update),
            stop=self._stop,
            may_serve=threading.Event(),
            publish_status=lambda _payload: True,
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
    followed.wait(lambda s: s.refused == second, "the second release to be sent back")
    status = followed.status
    assert "sent back" in status.why
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


def test_a_release_that_is_sent_back_is_refused_and_not_offered(followed, repository):
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
    followed.wait(lambda s: s.refused == second, "the second release to be sent back")
    assert (followed.status.decision, followed.status.offered) == ("refused", None)
    assert followed.status.release == first


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


def test_a_malformed_announcement_is_reported_and_starts_no_update_check(followed, repository):
    first = repository.publish_tiny(0).release
    followed.start()
    followed.wait_release(first)
    asked = len(repository.requests)
    followed.follower.triggers.announce(b"garbage")
    followed.wait(lambda s: s.last_error is not None, "the error")
    assert "was not a valid announcement; see the log" in followed.status.last_error
    assert len(repository.requests) == asked
