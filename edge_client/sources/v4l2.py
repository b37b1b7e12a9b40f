"""Video devices of Linux (V4L2): which paths are cameras, and why one cannot be used.

OpenCV says only that it could not open one. Source: the Linux kernel's Media Infrastructure userspace API,
VIDIOC_QUERYCAP; the layout of its structure is the same on all machines.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import grp
import os
import stat
import struct
from pathlib import Path

from edge_client.permissions import user_name

_DEVICES = "/dev/"
_SHARED_MEMORY = "/dev/shm/"  # noqa: S108 - excluded
_VIDIOC_QUERYCAP = 0x80685600
# driver[16], card[32], bus_info[32], version, capabilities, device_caps, reserved[3]
_CAPABILITY = struct.Struct("=16s32s32sIII12x")
_CAPTURES = 0x0000_0001 | 0x0000_1000  # V4L2_CAP_VIDEO_CAPTURE, and with several planes
_HAS_DEVICE_CAPS = 0x8000_0000
_MOST_NAMED = 6


def is_video_device(path: str) -> bool:
    """Whether a path names a camera: a character device, or the place of one that is not plugged in now."""
    real = os.path.realpath(path)
    try:
        return stat.S_ISCHR(Path(real).stat().st_mode)
    except OSError:
        return real.startswith(_DEVICES) and not real.startswith(_SHARED_MEMORY)


def explain_device(path: str) -> str:
    """Return why a device gives no pictures, with the way out; "" if nothing is wrong with it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return f"there is no such device: is it plugged in? {_others()}"
    except PermissionError:
        return _explain_permission(path)
    except OSError as e:
        if e.errno == errno.EBUSY:
            return f"it is in use{_by_whom(path)}; end that program"
        return f"{e.strerror or e}; plug it in again, and check its power"
    return _explain_opened(path, descriptor)


def _explain_opened(path: str, descriptor: int) -> str:
    try:
        driver, card, captures = _capabilities(descriptor)
    except OSError:
        return f"this device is no camera; {_others()}"
    finally:
        os.close(descriptor)
    if not captures:
        # A USB camera has a second node for its metadata.
        return f"{card or driver}: this node of the camera gives no pictures, another one does; {_others()}"
    by = _by_whom(path)
    return f"{card or driver} is in use{by}; end that program" if by else ""


def _capabilities(descriptor: int) -> tuple[str, str, bool]:
    """Return driver, name of the device, and whether it gives pictures.

    Raises: OSError if it is no camera.
    """
    answer = fcntl.ioctl(descriptor, _VIDIOC_QUERYCAP, bytes(_CAPABILITY.size))
    driver, card, _bus, _version, all_nodes, this_node = _CAPABILITY.unpack(answer)
    has = this_node if all_nodes & _HAS_DEVICE_CAPS else all_nodes
    return _text(driver), _text(card), bool(has & _CAPTURES)


def _text(data: bytes) -> str:
    return data.split(b"\0")[0].decode("utf-8", "replace").strip()


def _explain_permission(path: str) -> str:
    try:
        group = grp.getgrgid(Path(path).stat().st_gid).gr_name
    except (KeyError, OSError):
        group = "video"
    user = user_name(os.geteuid())
    return (
        f"{user} may not open it: run `sudo usermod -aG {group} {user}` and start the daemon again "
        f"(as a service: SupplementaryGroups={group} in its unit)"
    )


def _others() -> str:
    """Name the cameras that are there: by id, which stays the same wherever they are plugged in."""
    found = sorted(glob.glob("/dev/v4l/by-id/*")) or sorted(glob.glob("/dev/video*"))  # noqa: PTH207
    if not found:
        return "there are no cameras in /dev/video* (`lsusb` shows what is plugged in)"
    return f"there are {', '.join(found[:_MOST_NAMED])}"


def _by_whom(path: str) -> str:
    """Return which other programs have a device open, as far as this user may see; "" if none."""
    real, programs = os.path.realpath(path), set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        process = link.parent.parent
        with contextlib.suppress(OSError):
            if int(process.name) != os.getpid() and str(link.readlink()) == real:
                programs.add(f"{(process / 'comm').read_text().strip()} (process {process.name})")
    return f" by {', '.join(sorted(programs))}" if programs else ""
