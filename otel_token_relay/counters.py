"""OpenTelemetry instruments that are created on first use.

This package's objects can be constructed while OpenTelemetry is still being imported. Requesting a meter during
that import would load the meter provider.
"""

from __future__ import annotations

import logging

from opentelemetry import context as otel_context
from opentelemetry import metrics

from otel_token_relay.otel import is_suppressed

_logger = logging.getLogger("otel_token_relay")


class LazyHistogram:
    """A thread-safe histogram that is created on first use.

    Args:
        name: The histogram's name.
        unit: The histogram's unit.
        description: The histogram's description.
        boundaries: The upper bounds of the buckets.
    """

    __slots__ = ("_boundaries", "_created", "_description", "_name", "_unit")

    def __init__(self, name: str, unit: str, description: str, boundaries: tuple[float, ...]) -> None:
        self._name = name
        self._unit = unit
        self._description = description
        self._boundaries = boundaries
        self._created: metrics.Histogram | None = None

    def record(self, value: float, attributes: dict[str, str]) -> None:
        """Record a measurement. Errors are logged, not raised."""
        try:
            if self._created is None:
                if is_suppressed(otel_context.get_current()):
                    return
                self._created = metrics.get_meter("otel_token_relay").create_histogram(
                    self._name,
                    unit=self._unit,
                    description=self._description,
                    explicit_bucket_boundaries_advisory=self._boundaries,
                )
            self._created.record(value, attributes)
        except Exception:
            _logger.debug("cannot record a measurement in the %s histogram", self._name, exc_info=True)


class LazyCounter:
    """A thread-safe counter that is created on first use or by `prepare`.

    Attributes:
        created: The counter; ``None`` until it has been created.
    """

    __slots__ = ("_description", "_name", "_unit", "created")

    def __init__(self, name: str, unit: str, description: str) -> None:
        self._name = name
        self._unit = unit
        self._description = description
        self.created: metrics.Counter | None = None

    def create(self) -> metrics.Counter:
        """Return the counter, creating it if necessary. In a suppressed context, return a no-op counter instead.

        In a suppressed context, the meter provider might be waiting for the current request to finish.
        """
        if self.created is not None:
            return self.created
        if is_suppressed(otel_context.get_current()):
            return metrics.NoOpCounter(self._name)
        self.created = metrics.get_meter("otel_token_relay").create_counter(
            self._name, unit=self._unit, description=self._description
        )
        return self.created

    def prepare(self) -> None:
        """Create the counter before the first request. Errors are logged, not raised.

        Until an SDK is configured, the API returns a counter that it later connects to the SDK.
        """
        try:
            self.create()
        except Exception:  # the application's meter provider failed; retry on the next use
            _logger.debug("the %s counter cannot be created yet", self._name, exc_info=True)
