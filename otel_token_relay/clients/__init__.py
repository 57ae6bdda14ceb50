"""The hop of each HTTP client: where its request goes, what it carries, and how a header is added.

Each module knows one library and imports it never: it is given the module once the application
has imported it. No module holds a rule; `otel_token_relay.relay` decides.
"""
