"""A run right after another, under a real luigid with the `[scheduler]` of luigi.cfg.

`tests/end_to_end/test_stolen_keys.py` runs a second `Deploy` at once.
"""

from __future__ import annotations

from pathlib import Path

import luigi


class Written(luigi.Task):
    """A step whose result may be gone again."""

    path = luigi.Parameter()

    def output(self):
        return luigi.LocalTarget(self.path)

    def run(self):
        Path(str(self.path)).write_text("done")


def test_work_that_is_to_be_done_again_is_done_within_seconds_of_the_last_run(tmp_path, scheduler):
    """Luigi's own setting takes what was done seconds ago for done: exit code 25, and nothing is done."""
    result = tmp_path / "result"
    for _ in range(2):
        assert luigi.build(
            [Written(path=str(result))],
            scheduler_host=scheduler.host,
            scheduler_port=scheduler.port,
            log_level="WARNING",
        )
        assert result.exists()
        result.unlink()
