"""Running the API: the process ends when what was accepted is finished and had time to be fetched."""

from __future__ import annotations

import threading
import time
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    from fastapi import FastAPI

    from patchscaler.service.upscaler import Upscaler


class Server(uvicorn.Server):
    """A server that drains on the first signal and ends at once on the second.

    While it drains, new work is refused with 503 and everything else is answered: jobs can be followed and their
    results fetched, until none is left or `grace` seconds after the last one ended.

    Args:
        config: uvicorn's.
        upscaler: what the app serves.
        grace: seconds for clients to fetch results.
    """

    def __init__(self, config: uvicorn.Config, upscaler: Upscaler, grace: float) -> None:
        super().__init__(config)
        self.upscaler, self.grace = upscaler, grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends."""
        if self.upscaler.queue.closed:
            super().handle_exit(sig, frame)
            return
        self.upscaler.queue.close()
        threading.Thread(target=self._drain, name="patchscaler-drain", daemon=True).start()

    def _drain(self) -> None:
        while not self.upscaler.is_idle and not self.should_exit:
            time.sleep(0.05)
        end = time.monotonic() + self.grace
        while self.upscaler.jobs and time.monotonic() < end and not self.should_exit:
            time.sleep(0.05)
        self.should_exit = True


def run(app: FastAPI, upscaler: Upscaler, host: str, port: int, *, grace: float) -> None:
    """Serve until a signal, or until the model turns out not to load.

    Raises:
        Exception: why the model cannot be loaded.
    """
    config = uvicorn.Config(app, host=host, port=port, log_level="info", server_header=False)
    server = Server(config, upscaler, grace)

    def watch() -> None:
        while upscaler.model is None and not server.should_exit:
            if upscaler.failure is not None:
                server.should_exit = True
            time.sleep(0.05)

    threading.Thread(target=watch, name="patchscaler-load", daemon=True).start()
    server.run()
    if upscaler.failure is not None:
        raise upscaler.failure
