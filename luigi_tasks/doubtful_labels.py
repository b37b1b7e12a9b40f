"""The task that lists pictures in the wrong class, on the features that the pipeline keeps."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edge_client.contract.errors import SettingsError
from luigi_tasks import addresses, artifacts, steps
from luigi_tasks.pipeline import BackboneFeatures, ConvertBackbone, DatasetSnapshot, TrainingTask, TrainModel
from luigi_tasks.task import logger
from luigi_tasks.workspace import open_workspace

if TYPE_CHECKING:
    from luigi_tasks.progress import Progress
    from luigi_tasks.task import PipelineTask

NAMED_AT_MOST = 5
NO_WEIGHTS = (
    "DoubtfulLabels compares features of a network that did not learn from the labels; [model] weights is "
    "none. Set it to imagenet or to a file"
)


class DoubtfulLabels(TrainingTask):
    """A list of the pictures that probably stand in the wrong class, with what they probably are.

    It needs the features of the frozen backbone. Those of a fine-tuned one know the wrong labels; where the
    settings fine-tune, the frozen backbone's are computed in this task.
    """

    def requires(self) -> list[PipelineTask]:
        if self.identity.weights == "none":
            raise SettingsError(NO_WEIGHTS)
        if self.identity.tunes:
            return [self.clone(DatasetSnapshot)]
        return [self.clone(DatasetSnapshot), *self.features()]

    def features(self) -> list[BackboneFeatures]:
        """Return the tasks of the frozen backbone's features."""
        return self.frozen().features()

    def frozen(self) -> TrainModel:
        """Return the training of a head on the frozen backbone, which is never run."""
        if not self.identity.tunes:
            return self.clone(TrainModel)
        settings = self.workspace.settings
        settings = dataclasses.replace(settings, training=dataclasses.replace(settings.training, mode="head"))
        made = self.clone(TrainModel, recipe=addresses.recipe(settings))
        made.__dict__["workspace"] = open_workspace(settings, self.workspace.listing)
        return made

    def address(self) -> str | None:
        return addresses.doubtful(self.frozen().identity, self.snapshot_digest())

    def work(self, progress: Progress) -> str:
        from luigi_tasks.labelling import doubtful  # noqa: PLC0415 - Pillow

        frozen, snapshot = self.frozen(), self.load_snapshot()
        for one in (frozen.clone(ConvertBackbone), *frozen.features()):
            if not one.complete():  # the settings fine-tune
                one.work(progress)
        record = steps.find_doubtful(
            self.workspace.settings.training,
            snapshot,
            frozen.clone(ConvertBackbone).load(),
            [one.load() for one in frozen.features()],
            str(frozen.scheme),
            progress,
        )
        pictures = doubtful.load_thumbnails(record, snapshot.pictures, self.workspace.pixel_loader(progress))
        page = doubtful.render_page(record, pictures, str(self.pictures))
        csv, link = artifacts.save_doubtful(self.own_target(), record, page)
        self.link(link)
        first = ", ".join(f"{one.path} (probably {one.probable})" for one in record.doubtful[:NAMED_AT_MOST])
        logger.info("Doubtful labels: %s; all in %s, with pictures in %s", first or "none", csv, link)
        return f"{len(record.doubtful)} of {record.pictures} labels are doubtful; all in {csv}"
