"""The pipeline: `luigi --module luigi_tasks Deploy`, or `luigi_tasks.steps` as a Python API.

Importing it is cheap. The tasks are loaded where Luigi is, which finds them by import; a program that only
calls `luigi_tasks.steps` loads neither Luigi nor the tasks.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luigi_tasks.doubtful_labels import DoubtfulLabels
    from luigi_tasks.fleet.tasks import AdvanceRollout, Approve, Back, RefreshMetadata, Rollout
    from luigi_tasks.labelling.tasks import ListInbox, TakeLabelled
    from luigi_tasks.pipeline import (
        AnnounceRelease,
        DatasetSnapshot,
        Deploy,
        EvaluateModel,
        PublishRelease,
        QuantizeModel,
        TrainModel,
    )
    from luigi_tasks.roll_back import RollBack

__all__ = [
    "AdvanceRollout",
    "AnnounceRelease",
    "Approve",
    "Back",
    "DatasetSnapshot",
    "Deploy",
    "DoubtfulLabels",
    "EvaluateModel",
    "ListInbox",
    "PublishRelease",
    "QuantizeModel",
    "RefreshMetadata",
    "RollBack",
    "Rollout",
    "TakeLabelled",
    "TrainModel",
]

_ELSEWHERE = {
    "AdvanceRollout": "luigi_tasks.fleet.tasks",
    "Approve": "luigi_tasks.fleet.tasks",
    "Back": "luigi_tasks.fleet.tasks",
    "DoubtfulLabels": "luigi_tasks.doubtful_labels",
    "ListInbox": "luigi_tasks.labelling.tasks",
    "RefreshMetadata": "luigi_tasks.fleet.tasks",
    "RollBack": "luigi_tasks.roll_back",
    "Rollout": "luigi_tasks.fleet.tasks",
    "TakeLabelled": "luigi_tasks.labelling.tasks",
}


def __getattr__(name: str) -> object:
    """Load a task when it is asked for (PEP 562)."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_ELSEWHERE.get(name, "luigi_tasks.pipeline")), name)


if "luigi" in sys.modules:  # `luigi --module luigi_tasks`: Luigi finds the tasks that are loaded
    importlib.import_module("luigi_tasks.labelling.tasks")
    importlib.import_module("luigi_tasks.doubtful_labels")
    importlib.import_module("luigi_tasks.pipeline")
    importlib.import_module("luigi_tasks.fleet.tasks")
    importlib.import_module("luigi_tasks.roll_back")
    importlib.import_module("luigi_tasks.command_line").check_command(sys.argv[1:], __all__)
