"""Section [board] of luigi.cfg: the web application `edge-fleet board`."""

from __future__ import annotations

import luigi


class board(luigi.Config):  # noqa: N801 - the class name is the section's name in luigi.cfg
    """Section [board]."""

    host = luigi.Parameter(default="127.0.0.1", description="address that the board listens at")
    port = luigi.IntParameter(default=8090, description="port of the board")
    url = luigi.Parameter(
        default="",
        description="address that browsers use where it differs, such as https://example.org/fleet behind a "
        "reverse proxy; its path is where the pages lie",
    )
    state_dir = luigi.Parameter(
        default="~/.local/state/edge-fleet/board",
        description="folder of the board, on a local disk: index, tokens, labels, logs of runs",
    )
    anonymous = luigi.ChoiceParameter(
        choices=("viewer", "none"),
        default="viewer",
        description="what who has no token may do: viewer (read, and try pictures) or none",
    )
    look_s = luigi.FloatParameter(
        default=1.0,
        description="time between two looks at the bucket while somebody has a page open; else 60 times that",
    )
