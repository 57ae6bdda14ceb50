"""The parts of the test kit. `otel_token_relay.testing` and `otel_token_relay.pytest_plugin` offer them to users.

Production code imports nothing from here.
"""
