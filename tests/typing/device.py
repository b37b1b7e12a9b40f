"""Types of the device's public Python API; mypy checks this file, nothing runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_client.inference import Classifier, Prediction, classifier_from_release

classifier: Classifier = classifier_from_release(Path("release"), threads=2)
prediction: Prediction = classifier.classify(np.zeros((2, 2, 3), np.uint8))
label: str = prediction.label
confidence: float = prediction.confidence
best: dict[str, float] = prediction.top(3)
release: str | None = classifier.release
