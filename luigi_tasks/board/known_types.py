"""The types of all documents are made known before there are threads.

Two threads that use a type of msgspec 0.22 for the first time together end the process, see
`edge_client.contract.documents.decoder_of`. Pages decode in threads, and in many places.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import decoder_of

if TYPE_CHECKING:
    from collections.abc import Iterator

# Modules with types that pages import only when they need them; importing these is cheap.
_LATER = (
    "luigi_tasks.evidence.statement",
    "luigi_tasks.fleet.registry",
    "luigi_tasks.fleet.snapshots",
    "luigi_tasks.fleet.events",
    "luigi_tasks.labelling.desk",
    "luigi_tasks.release.judged",
    "luigi_tasks.release.kept_snapshot",
    "luigi_tasks.release.memory",
    "luigi_tasks.release.rollouts_key",
)


def make_types_known() -> None:
    """Let msgspec collect what it needs to know of each type that is loaded."""
    for name in _LATER:
        importlib.import_module(name)
    for kind in _subclasses(msgspec.Struct):
        with contextlib.suppress(TypeError, NameError, AttributeError):  # bases that stand for others
            decoder_of(kind)


def _subclasses(kind: type) -> Iterator[type]:
    found: list[type] = kind.__subclasses__()
    for one in found:
        yield one
        yield from _subclasses(one)
