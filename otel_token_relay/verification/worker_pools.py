"""Threads in which requests to authorization servers run, with a count that limits them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor


class WorkerPool:
    """A thread pool and the number of its running and waiting calls. The owner's lock guards both.

    Args:
        name: A part of the threads' names.
        workers: The maximum number of threads.

    Attributes:
        executor: Runs the calls.
        load: The number of calls, which the owner counts.
    """

    __slots__ = ("_name", "_workers", "executor", "load")

    def __init__(self, name: str, workers: int) -> None:
        self._name, self._workers = name, workers
        self.load: int = 0
        self.start_over()

    def start_over(self) -> None:
        """Replace the workers with new ones, which start when they are needed."""
        self.executor: ThreadPoolExecutor = ThreadPoolExecutor(self._workers, f"token-relay-{self._name}")

    @property
    def is_busy(self) -> bool:
        """Whether another call would have to wait for a worker."""
        return self.load >= self._workers
