"""Classify pictures with a downloaded release, or with any TFLite image classifier.

    from edge_client.inference import classifier_from_release

    classifier = classifier_from_release(Path("/var/lib/edge-client/slots/…"))
    print(classifier.classify(pixels).top(3))  # pixels: (H, W, 3) uint8 RGB

The names are imported at their first use: an update check needs the runtime's version only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_client.inference.classifier import Classifier, Prediction, classifier_from_release

__all__ = ["Classifier", "Prediction", "classifier_from_release"]


def __getattr__(name: str) -> object:
    """Import a public name, see PEP 562."""
    if name in __all__:
        return getattr(importlib.import_module("edge_client.inference.classifier"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
