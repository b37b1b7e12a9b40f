"""The pages of releases in a real Chromium; the pipeline's own gate and publication made them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import urllib.error
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import pytest

from edge_client.contract.errors import InputError
from edge_client.contract.names import release_target
from edge_client.contract.rollout import EVERYBODY, RolloutDocument
from luigi_tasks.board.releases.matrix import MATRIX_CLASSES, build_matrix
from luigi_tasks.fleet.records import RolloutEvent, RolloutPlan, RolloutRecord, StageRecord
from luigi_tasks.release.published import object_key
from tests.fakes.command_fleet import CommandFleet
from tests.fakes.gate_facts import found, measured
from tests.fakes.gated_releases import GatedReleases
from tests.fakes.running_board import RunningBoard
from tests.pipeline.board.conftest import board_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

# Names that would change a page, were they taken for HTML, or turn a line round.
LABELS = ("<img src=x onerror=alert(1)>", "gr\u202eeen", "blue'\"&amp;")
WHY = "</td><script>alert(2)</script>"


class Site(NamedTuple):
    """A board over a bucket with releases: 0 of an old version, 1 steady, 2 by a program, 3 rolled out."""

    board: RunningBoard
    fleet: CommandFleet
    made: GatedReleases
    releases: list[str]

    def open(self, tab: Page, *path: str) -> None:
        """Open a page below the releases."""
        tab.goto(self.board.url + "/".join(("releases", *path)))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        fleet = CommandFleet(folder, patch)
        with RunningBoard(board_settings(fleet, folder, "look_s = 0.2")) as board:
            empty = board.json("releases")
            assert (empty["total"], empty["rows"]) == (0, [])
            made = GatedReleases(fleet.settings, LABELS)
            releases = [
                made.publish(0, mistakes=6, is_old=True),
                made.publish(1, mistakes=4, epochs=33),
                made.publish(2, mistakes=4, has_tasks=False),
                made.publish(3, mistakes=3),
            ]
            fleet.repository.publish({}, lambda now: _point(now, releases[1], releases[2]), "stable")
            fleet.roll_out(*rollout(releases[3], releases[1]))
            yield Site(board, fleet, made, releases)


def _point(pointer, release: str, withdrawn: str):
    return msgspec.structs.replace(pointer, release=release, withdrawn=(withdrawn,))


def rollout(release: str, before: str) -> tuple[RolloutRecord, RolloutDocument]:
    """A rollout whose second stage a person approved."""
    record = RolloutRecord(
        id="r-1",
        channel="stable",
        release=release,
        from_release=before,
        plan=RolloutPlan(stages=("1d", "25%", "100%")),
        state="open",
        stages=(StageRecord(number=2, size=3, threshold=EVERYBODY // 4, opened_at=1.8e9),),
        created_at="2026-11-27T10:00:00+00:00",
        created_by="ann",
        events=(
            RolloutEvent(at="2026-11-27T10:00:00+00:00", what="opened", who="ann", why="nightly"),
            RolloutEvent(at="2026-11-27T11:00:00+00:00", what="approved", who="ben", why=WHY, stage=2),
        ),
    )
    document = RolloutDocument(
        channel="stable", id="r-1", release=release, from_release=before, threshold=EVERYBODY // 4
    )
    return record, document


def test_all_releases_are_listed_with_what_the_channels_say_of_them(site: Site, tab: Page) -> None:
    first, steady, withdrawn, rolled_out = site.releases
    site.open(tab)
    rows = tab.locator("table.releases tbody tr")
    assert rows.locator("th > a").all_text_contents() == site.releases[::-1]
    texts = {
        one: rows.filter(has=tab.locator(f"th > a[href$='{one}']")).inner_text() for one in site.releases
    }
    assert "rolling out, 25%" in texts[rolled_out]
    assert "withdrawn" in texts[withdrawn]
    assert "steady" in texts[steady]
    assert re.search(r"93\.33 %\s+86\.21 to 96\.91 %, 90 pictures", texts[first])
    tab.get_by_role("link", name="Hold-out accuracy", exact=True).click()
    assert rows.first.locator("th > a").text_content() == rolled_out
    tab.get_by_role("link", name="Hold-out accuracy", exact=True).click()
    assert rows.first.locator("th > a").text_content() == first
    assert tab.locator("th[aria-sort=ascending]").inner_text() == "Hold-out accuracy"
    table = tab.locator("figure.chart details table")
    assert table.locator("tbody tr").count() == len(site.releases)


def test_a_release_shows_what_the_gate_found_who_approved_it_and_its_proof(site: Site, tab: Page) -> None:
    _, steady, _, rolled_out = site.releases
    site.open(tab, rolled_out)
    checks = tab.get_by_role("region", name="Checks of the gate")
    loss = checks.locator("tr", has_text="loss against the deployed model")
    assert re.search(r"-\d\.\d\d to \d\.\d\d points", loss.inner_text())
    matrix = tab.get_by_role("table", name="Confusion matrix")
    assert matrix.locator("tbody th").all_inner_texts() == [LABELS[0], r"gr\u202eeen", LABELS[2]]
    assert matrix.locator("tbody tr").nth(0).locator("td").all_inner_texts() == ["27", "3", ""]
    assert matrix.locator("td.w1").inner_text() == "3"
    labels = tab.get_by_role("region", name="Labels: table", exact=True).locator("tbody tr")
    figures = labels.first.locator("td").all_inner_texts()
    assert figures[:4] == ["30", "90.00 %", "74.38 to 96.54 %", "100.00 %"]
    assert "never" in labels.filter(has_text=LABELS[2]).inner_text()
    acts = tab.locator("ul.acts li").all_inner_texts()
    assert "opened by ann Nov 27, 2026, 11:00 AM: nightly" in acts
    assert f"approved stage 2 by ben Nov 27, 2026, 12:00 PM: {WHY}" in acts
    lineage = tab.locator("ol.lineage")
    assert site.releases[0] in lineage.inner_text()
    settings = tab.get_by_role("region", name="Settings that differ from the parent's")
    assert settings.count() == 0  # 2 and 3 have the same
    assert "holds: each step was signed" in tab.locator("#evidence ~ .notice").inner_text()
    downloads = tab.get_by_role("region", name="Downloads").locator("tbody tr", has_text=steady)
    assert f"model.tflite.from-{steady}.zst" in downloads.inner_text()
    picture = tab.locator("ul.self-test img").first
    tab.get_by_text("2 pictures", exact=True).click()
    picture.scroll_into_view_if_needed()
    tab.wait_for_function("one => one.naturalWidth == 32", arg=picture.element_handle())
    tab.get_by_role("link", name="Read every file of the release and verify it now").click()
    assert "each step that made it is signed" in tab.locator(".notice").inner_text()
    site.open(tab, steady)
    tab.get_by_role("link", name="The gate's report").click()
    assert "Passed the gate" in tab.locator("h1").inner_text()
    assert tab.locator("img[onerror], script").count() == 0


def test_two_releases_are_chosen_and_stand_side_by_side(site: Site, tab: Page) -> None:
    first, second = site.releases[:2]
    site.open(tab)
    tab.get_by_label("Compare").select_option(first)
    tab.get_by_label("with").select_option(second)
    tab.get_by_role("button", name="Side by side").click()
    assert tab.url.endswith(f"releases/{first}/beside/{second}")
    figures = tab.get_by_role("region", name="Figures of both releases")
    assert figures.locator("tr", has_text="hold-out accuracy").inner_text().endswith("+2.22 points")
    label = tab.get_by_role("region", name="Recall of each label").locator("tbody tr").last
    assert label.inner_text().endswith("+6.67 points")
    assert label.locator("th").inner_text() == LABELS[0]
    settings = tab.get_by_role("region", name="Settings and versions that differ").inner_text()
    assert re.search(r"training\.epochs\s+20\s+33", settings)
    assert "numpy" not in settings
    pictures = site.board.json(f"releases/{first}/beside/{second}")["pictures"]
    assert pictures == {"both": 178, "gone": 2, "new": 5, "relabelled": 0, "moved": 0}
    command = [sys.executable, "-m", "luigi_tasks.board.releases.snapshot_child"]  # as for long lists
    order = msgspec.json.encode({"first": first, "second": second})
    done = subprocess.run(command, input=order, capture_output=True, check=True)
    assert msgspec.json.decode(done.stdout) == {"change": pictures, "missing": ""}


def test_a_refused_candidate_shows_why_and_its_report(site: Site, tab: Page) -> None:
    with pytest.raises(InputError, match="the gate refused"):
        site.made.publish(9, mistakes=25)
    site.open(tab)
    tab.get_by_role("link", name="What the gate judged lately").click()
    row = tab.get_by_role("region", name="Candidates").locator("tbody tr", has_text="Refused")
    assert LABELS[0] in row.locator("ul.reasons").inner_text()
    candidate = row.locator("code").first.inner_text()
    assert candidate not in site.board.json("releases")["names"]
    tab.goto(f"{site.board.url}releases/{candidate}")  # who follows its id finds the verdict
    tab.get_by_role("link", name="What the gate judged lately").click()
    row.get_by_role("link", name="Report").click()
    assert "Refused by the gate" in tab.locator("h1").inner_text()


def test_json_has_the_whole_record_and_no_release_is_invented(site: Site) -> None:
    told = site.board.json(f"releases/{site.releases[2]}")
    assert told["gate"]["origin"] == "signed"
    assert told["gate"]["record"]["candidate"]["confusion"][0] == [26, 4, 0]
    assert told["document"]["labels"] == list(LABELS)
    assert told["proof"]["faults"]  # a program published it
    for path in (
        "unknown",
        "..%2fkeys",
        f"{site.releases[0]}/beside/no",
        f"{site.releases[0]}/self-test/model.tflite",
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            site.board.json(f"releases/{path}")
        assert refused.value.code == 404


def test_what_is_published_appears_and_what_is_gone_costs_its_own_row_alone(site: Site, tab: Page) -> None:
    """Last of the file: it takes objects away."""
    old, unrecorded, broken, _ = site.releases
    assert site.board.json(f"releases/{old}")["gate"]["origin"] == "proven"
    site.open(tab)
    new = site.made.publish(4, mistakes=1, is_old=True, channel="beta")
    rows = tab.locator("table.releases tbody tr")
    rows.first.filter(has_text=new).wait_for()
    work = site.fleet.bucket / "work/evaluations"
    (work / "0/evaluation.json").write_bytes((work / "4/evaluation.json").read_bytes())
    shutil.rmtree(work / "4")
    files = site.fleet.repository.load().files
    for release, name in ((broken, "release.json"), (unrecorded, "gate.json")):
        path = release_target(release, name)
        (site.fleet.bucket / object_key(path, files[path].hashes["sha256"])).unlink()
    site.board.stop()  # what was proven stays known for a while
    site.board.start()
    forged = site.board.json(f"releases/{old}")
    assert forged["gate"] is None
    assert "not what was signed" in forged["gate_missing"]
    site.open(tab, new)
    tab.get_by_text("No record of the gate").wait_for()
    assert tab.locator("table.matrix").count() == 0
    site.open(tab)
    assert "cannot be read" in rows.filter(has_text=broken).last.inner_text()
    assert "interval not kept" in rows.first.inner_text()
    assert re.search(r"95\.55 %\s+record cannot be read", rows.filter(has_text=unrecorded).last.inner_text())
    assert rows.count() == len(site.releases) + 1


def test_a_matrix_of_many_classes_keeps_those_that_are_confused_and_counts_every_picture() -> None:
    count = 200
    labels = [f"class {number}" for number in range(count)]
    confusion = [[0] * count for _ in labels]
    for number in range(count):
        confusion[number][number] = 5
    for number in range(0, 40, 2):
        confusion[number][199 - number] = 3
    rows = tuple(found(label, sum(row), 0.9) for label, row in zip(labels, confusion, strict=True))
    record = msgspec.structs.replace(
        measured(0.9, *rows, pictures=1060), confusion=tuple(tuple(row) for row in confusion)
    )
    matrix = build_matrix(record)
    assert matrix is not None
    assert (len(matrix.labels), len(matrix.rows), matrix.others) == (MATRIX_CLASSES - 1, MATRIX_CLASSES, 171)
    assert sum(cell.count for row in matrix.rows for cell in row.cells) == 1060
    assert {"class 0", "class 199"} <= {*matrix.labels}
    assert all(len(row.cells) == MATRIX_CLASSES for row in matrix.rows)
    assert [row.label for row in matrix.rows][-1] is None
