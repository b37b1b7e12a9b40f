"""Whether the devices of a rollout can run its release, from what they reported; unknown is never none."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edge_client import __version__
from edge_client.contract.report import DeviceReport, MachineFacts
from luigi_tasks.fleet.compatibility import find_incompatible
from luigi_tasks.fleet.records import DeviceRow, EnrolledDevice
from luigi_tasks.fleet.runtimes import find_missing
from tests.fakes.tiny_release import tiny_release

OLD, NEW = "tflite-runtime 2.14.0", "ai-edge-litert 2.3.0"
RELEASE = tiny_release()[0]
NEWER = msgspec.structs.replace(RELEASE, operators={"FULLY_CONNECTED": 12, "SOFTMAX": 2})


def enrolled(*devices: str, **more: Any) -> list[EnrolledDevice]:
    return [EnrolledDevice(device=one, **more) for one in devices]


def row(device: str, runtime: str = NEW, channel: str = "stable", **more: Any) -> DeviceRow:
    told = {"client": __version__, **more}
    report = DeviceReport(fleet="fleet", device=device, channel=channel, runtime=runtime, **told)
    return DeviceRow(device=device, channel=channel, report=report)


@pytest.mark.parametrize(
    ("runtime", "operators", "lacks", "unknown"),
    [
        (OLD, {"FULLY_CONNECTED": 10, "CONV_2D": 7}, False, False),
        (OLD, {"FULLY_CONNECTED": 12}, True, False),
        (OLD, {"CONV_2D": 8}, True, False),
        (NEW, {"FULLY_CONNECTED": 13}, False, False),
        (NEW, {"FULLY_CONNECTED": 99}, False, True),
        (OLD, {"FULLY_CONNECTED": 99}, False, True),
        (OLD, {"STABLEHLO_ADD": 1}, False, True),
        ("my own runtime", {"SOFTMAX": 1}, False, True),
        ("tflite-runtime", {"SOFTMAX": 1}, False, True),
        ("ai-edge-litert 1.0.1", {"FULLY_CONNECTED": 13}, False, False),
        ("", {"SOFTMAX": 1}, False, True),
    ],
)
def test_what_a_runtime_has(runtime, operators, lacks, unknown):
    lacking, doubted = find_missing(runtime, operators, {})
    assert (bool(lacking), bool(doubted)) == (lacks, unknown)


def test_devices_with_an_old_runtime_are_named_with_the_operator_that_they_lack():
    found = find_incompatible(NEWER, enrolled("a", "b"), [row("a", OLD), row("b")])
    assert found.compatible == ("b",)
    assert found.incompatible == {"a": f"{OLD} has no FULLY_CONNECTED version 12 (since 2.17)"}
    assert found.in_words() == (
        f"1 of 2 devices can run it; 1 cannot: {OLD} has no FULLY_CONNECTED version 12 (since 2.17) (a)"
    )


def test_a_device_that_never_told_is_unknown_and_not_among_those_that_can():
    rows = [row("silent", runtime=""), row("elsewhere", channel="beta"), row("a")]
    found = find_incompatible(RELEASE, enrolled("a", "silent", "elsewhere", "unseen"), rows)
    assert found.compatible == ("a",)
    assert found.incompatible == {}
    assert found.unknown == {
        "silent": "never reported its runtime",
        "elsewhere": "never reported",
        "unseen": "never reported",
    }


def test_a_client_that_knows_no_rollouts_has_the_class_that_it_is_enrolled_with_and_is_told_of():
    for_pi5 = msgspec.structs.replace(RELEASE, device_class="pi5")
    found = find_incompatible(for_pi5, enrolled("a", device_class="pi5"), [row("a", client="")])
    assert found.incompatible == {}
    assert "knows no rollouts" in found.unknown["a"]


def test_what_a_runtime_ran_on_one_registered_device_another_of_the_same_can_run_too():
    unheard_of = "ai-edge-litert-nightly"
    ran = row("a", unheard_of, operators={"FULLY_CONNECTED": 12, "SOFTMAX": 2})
    found = find_incompatible(NEWER, enrolled("a", "b"), [ran, row("b", unheard_of)])
    assert set(found.compatible) == {"a", "b"}

    stranger = find_incompatible(NEWER, enrolled("b"), [ran, row("b", unheard_of)])
    assert "whether ai-edge-litert-nightly has FULLY_CONNECTED version 12" in stranger.unknown["b"]


def test_a_variant_counts_for_the_class_that_it_is_for():
    devices = enrolled("old", device_class="zero2w") + enrolled("new")
    rows = [row("old", OLD, device_class="zero2w"), row("new")]
    assert set(find_incompatible(NEWER, devices, rows).incompatible) == {"old"}
    found = find_incompatible(NEWER, devices, rows, variants={"zero2w": RELEASE})
    assert set(found.compatible) == {"old", "new"}


def test_class_memory_and_preprocessing_are_asked_too():
    for_pi5 = msgspec.structs.replace(RELEASE, device_class="pi5")
    found = find_incompatible(for_pi5, enrolled("a"), [row("a", device_class="zero2w")])
    assert found.incompatible == {"a": "the release is for class pi5, the device has class zero2w"}

    large = msgspec.structs.replace(RELEASE, model_bytes=300_000_000)
    found = find_incompatible(
        large, enrolled("a"), [row("a", machine=MachineFacts(memory_bytes=512_000_000))]
    )
    assert "300 MB, twice during an update, and 512 MB" in found.incompatible["a"]

    other = msgspec.structs.replace(RELEASE.preprocessing, id="lanczos-9")
    lanczos = msgspec.structs.replace(RELEASE, preprocessing=other)
    rows = [row("a"), row("b", client="9.0.0")]
    found = find_incompatible(lanczos, enrolled("a", "b"), rows)
    assert set(found.incompatible) == {"a"}
    assert set(found.unknown) == {"b"}


def test_only_devices_of_the_rollout_are_asked():
    devices = [
        *enrolled("here", site="shop-7"),
        *enrolled("there", site="shop-8"),
        *enrolled("gone", site="shop-7", retired_at="2026-11-01T00:00:00+00:00"),
        *enrolled("other", site="shop-7", channels=("beta",)),
    ]
    found = find_incompatible(RELEASE, devices, [], only=("site=shop-7",))
    assert set(found.unknown) == {"here"}


def test_a_runtime_with_a_hostile_name_is_shown_on_one_line():
    hostile = "tflite-runtime 2.14\x1b[2J\u202e\n[red]"
    found = find_incompatible(NEWER, enrolled("a"), [row("a", hostile)])
    assert found.in_words().isprintable()
