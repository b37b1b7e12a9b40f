"""Files of others: those of the lists, with their licences."""

from __future__ import annotations

import shutil

import renew_board_vendor as vendor


def test_vendored_files_are_those_of_the_lists_and_licences_lie_beside():
    assert vendor.main(["--check"]) == 0
    for folder in (vendor.BOARD, vendor.TESTS):
        rows = vendor.read_list(folder)
        assert {row.licence for row in rows} <= {"0BSD", "MIT", "MPL-2.0"}
        for name in {row.name for row in rows}:
            assert any("LICENSE" in row.file for row in rows if row.name == name)
    assert {row.licence for row in vendor.read_list(vendor.BOARD)} == {"0BSD", "MIT"}


def test_a_changed_a_missing_and_an_unlisted_file_are_told(tmp_path):
    folder = tmp_path / "vendor"
    shutil.copytree(vendor.BOARD, folder)
    script = folder / "htmx.min.js"
    script.write_bytes(script.read_bytes() + b" ")
    (folder / "uPlot.LICENSE").unlink()
    (folder / "other.js").write_text("")
    faults = "\n".join(vendor.check((folder,)))
    assert "htmx.min.js: SHA-256" in faults
    assert "uPlot.LICENSE: missing" in faults
    assert "other.js: in no list" in faults
    assert "run scripts/renew-board-vendor" in faults
