"""The error hierarchy of both sides: one base, one branch for each party at fault.

A message names the file, key, device or task and the way out. Catch `EdgeError` to catch all.
"""


class EdgeError(Exception):
    """Base of every error that this project raises on purpose."""


class InputError(EdgeError):
    """Data or a document that the user (or a peer) handed in cannot be used."""


class SettingsError(EdgeError):
    """A setting is missing, unknown or out of range."""


class TrustError(EdgeError):
    """Signatures, hashes, versions or expiry do not hold: somebody lied or a key is wrong."""


class TransportError(EdgeError):
    """Store or broker could not be reached or broke off; the same act may succeed later."""


class DeviceError(EdgeError):
    """The device's own disk, camera or runtime failed."""
