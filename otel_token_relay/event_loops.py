"""Detect the event loop that is running in the current thread, without importing asyncio or trio.

Code that runs in an event loop must not block.
"""

from __future__ import annotations

import sys
from typing import Any, Literal


def running_loop() -> Literal["asyncio", "trio"] | None:
    """Return the type of event loop that is running in this thread, or ``None`` if code in this thread can block."""
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        return "asyncio"
    trio: Any = sys.modules.get("trio")
    if trio is not None:
        try:
            trio.lowlevel.current_task()
        except RuntimeError:  # no trio task is running in this thread
            return None
        return "trio"
    return None
