"""The components of the test kit, exposed through `otel_token_relay.testing` and `otel_token_relay.pytest_plugin`.

Production code imports nothing from this package.
"""
