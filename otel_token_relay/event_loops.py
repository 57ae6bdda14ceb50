"""Find out which event loop is running in this thread, without importing asyncio or trio.

Code that runs on an event loop must not block.
"""

from __future__ import annotations

import sys
from typing import Any, Literal


def running_loop() -> Literal["asyncio", "trio"] | None:
    """Return the kind of event loop that is running in this thread; ``None`` if the thread may block."""
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        return "asyncio"
    trio: Any = sys.modules.get("trio")
    if trio is not None:
        try:
            trio.lowlevel.current_task()
        except RuntimeError:  # this thread is not running a trio task
            return None
        return "trio"
    return None
