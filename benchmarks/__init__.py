"""Measure the cost of otel-token-relay relative to that of OpenTelemetry alone in the same run."""
