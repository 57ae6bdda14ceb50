"""Whether the current code runs on an event loop, which it must not block."""

from __future__ import annotations

import sys
from typing import Any


def is_on_event_loop() -> bool:
    """Return whether an asyncio or trio loop is running in this thread. Neither library is imported."""
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        return True
    trio: Any = sys.modules.get("trio")
    if trio is None:
        return False
    try:
        trio.lowlevel.current_task()
    except RuntimeError:  # this thread runs no trio task
        return False
    return True
