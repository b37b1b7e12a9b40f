"""The page of a device, and the frames that it handed in."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import tornado.web

from edge_client.contract.errors import InputError
from luigi_tasks.board.devices.frames import read_picture
from luigi_tasks.board.devices.view import UnknownDevice, read_device
from luigi_tasks.board.page import Page
from luigi_tasks.storage.opening import open_store

if TYPE_CHECKING:
    from luigi_tasks.board.devices.view import DeviceModel

_SIDE_PX = 160
_KEEP_S = 3600
_PATIENCE_S, _AGAIN_S = 3.0, 0.1


class DevicePage(Page):
    """One device, on all of its channels."""

    section = ""
    part = "device"

    async def get(self, device: str) -> None:
        """Show it."""
        model = await self.read(device)
        if isinstance(model, UnknownDevice):
            self.set_status(503 if model.is_loading else 404)
            self.answer("device_unknown.html", model)
            return
        self.answer("device.html", model)

    async def read(self, device: str) -> DeviceModel | UnknownDevice:
        """Return the page; a board that has just started reads the fleet first."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            model = await self.in_thread(lambda: read_device(self.board, device))
            is_early = isinstance(model, UnknownDevice) and model.is_loading
            if not is_early or time.monotonic() > until:
                return model
            await asyncio.sleep(_AGAIN_S)


class FramePage(Page):
    """A frame, small."""

    part = "device"

    async def get(self, device: str, picture: str) -> None:
        """Send it as JPEG, made in the confined child."""
        try:
            data = await self.in_thread(
                lambda: read_picture(open_store(self.board.settings.store), device, picture)
            )
        except InputError as e:
            raise tornado.web.HTTPError(404, reason="no such frame") from e
        small = await self.board.pictures.thumbnail(data, _SIDE_PX)
        self.set_header("Content-Type", "image/jpeg")
        self.set_header("Cache-Control", f"private, max-age={_KEEP_S}")
        self.finish(small)


HANDLERS = (
    (r"devices/([^/]+)", DevicePage),
    (r"devices/([^/]+)/frames/([^/]+)", FramePage),
)
