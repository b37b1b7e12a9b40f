"""The device: hears of releases, verifies, tries and swaps them in, and classifies pictures."""

__version__ = "0.1.0"
