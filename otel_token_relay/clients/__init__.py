"""The hooks of each client: where its request goes, which headers it has, and how one is added.

Each module supports one library and never imports it: its ``patch`` gets the library's module when the
application has imported that. `otel_token_relay.relay` makes all decisions.
"""
