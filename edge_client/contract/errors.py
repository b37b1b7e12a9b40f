"""Error hierarchy of pipeline and device: one base class, one subclass for each party at fault.

A message names the file, key, device or task and the way out. Catch `EdgeError` to catch all.
"""


class EdgeError(Exception):
    """Base of all errors that this project raises on purpose."""


class InputError(EdgeError):
    """Data or a document from the user or a peer cannot be used."""


class SettingsError(EdgeError):
    """A setting is missing, unknown or out of range."""


class TrustError(EdgeError):
    """A signature, hash, version or expiry check failed: forged or stale data, or a wrong key."""


class TransportError(EdgeError):
    """The store or the broker could not be reached or closed the connection; a retry may succeed."""


class DeviceError(EdgeError):
    """The device's disk, camera or TFLite runtime failed."""
