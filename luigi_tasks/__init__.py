"""The pipeline: `luigi --module luigi_tasks Deploy`. Importing it is cheap; steps import what they need."""

from luigi_tasks.labelling.tasks import ListInbox, TakeLabelled
from luigi_tasks.pipeline import (
    AnnounceRelease,
    DatasetSnapshot,
    Deploy,
    EvaluateModel,
    PublishRelease,
    QuantizeModel,
    RollBack,
    TrainModel,
)

__all__ = [
    "AnnounceRelease",
    "DatasetSnapshot",
    "Deploy",
    "EvaluateModel",
    "ListInbox",
    "PublishRelease",
    "QuantizeModel",
    "RollBack",
    "TakeLabelled",
    "TrainModel",
]
