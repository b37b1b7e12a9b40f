"""The commands of `edge-fleet`, a module for each subject."""
