"""Thread pools for requests to authorization servers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor


class WorkerPool:
    """A thread pool and the number of calls that are running or waiting.

    The owner must hold a lock while accessing the pool, and must update and limit the number of calls.

    Args:
        name: A word to include in the thread names.
        workers: The maximum number of threads.

    Attributes:
        executor: The executor that runs the calls.
        load: The number of running and waiting calls.
    """

    __slots__ = ("_name", "_workers", "executor", "load")

    def __init__(self, name: str, workers: int) -> None:
        self._name, self._workers = name, workers
        self.load: int = 0
        self.start_over()

    def start_over(self) -> None:
        """Replace the executor. The new executor starts its workers on demand."""
        self.executor: ThreadPoolExecutor = ThreadPoolExecutor(self._workers, f"token-relay-{self._name}")

    @property
    def is_busy(self) -> bool:
        """Whether a new call would have to wait for a worker."""
        return self.load >= self._workers
