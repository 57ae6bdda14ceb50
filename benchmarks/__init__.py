"""What the relay costs, measured against OpenTelemetry's own propagators in the same run."""
