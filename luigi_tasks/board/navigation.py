"""The pages of the navigation: address below the board, and name."""

from __future__ import annotations

NAVIGATION = (
    ("", "Fleet"),
    ("rollouts", "Rollouts"),
    ("releases", "Releases"),
    ("label", "Label"),
    ("try", "Try"),
    ("pipeline", "Pipeline"),
)
