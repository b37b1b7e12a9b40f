"""The device: receives announcements, verifies, tests and activates releases, and classifies frames."""

__version__ = "0.1.0"
