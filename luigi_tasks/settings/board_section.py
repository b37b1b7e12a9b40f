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
    luigid_url = luigi.Parameter(
        default="",
        description="address of luigid's own page for browsers, for the link to it; empty: as in [core], "
        "where a browser probably reaches that",
    )
    hosts = luigi.Parameter(
        default="",
        description="further names of the board, with commas; a request for another name is refused (its "
        "IP addresses, localhost, this machine's names and the host of url always count)",
    )
    session_h = luigi.FloatParameter(
        default=12.0,
        description="time after which who signed in with a token in a browser does so again, hours",
    )
    trusted_proxies = luigi.Parameter(
        default="",
        description="addresses and networks of reverse proxies, with commas: what they say about who "
        "sends a request counts (X-Forwarded-For, -Proto, -Host, and proxy_user_header)",
    )
    proxy_user_header = luigi.Parameter(
        default="",
        description="header in which an authenticating proxy names the person, such as X-Forwarded-User; "
        "it must replace what browsers send under that name",
    )
    proxy_groups_header = luigi.Parameter(
        default="", description="header in which it names the person's groups, with commas"
    )
    operators = luigi.Parameter(
        default="",
        description="whom of its persons may act on rollouts and the pipeline: names and @groups, with "
        "commas; *: all",
    )
    labellers = luigi.Parameter(default="", description="whom of its persons may label: as operators")
    viewers = luigi.Parameter(
        default="", description="whom of its persons may read, where anonymous is none: as operators"
    )
