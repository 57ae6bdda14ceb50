"""The hooks for each client: they find where its request goes and which headers it has, and add one.

Each module supports one library and never imports that library: its ``patch`` gets the library's module once the
application has imported it. `otel_token_relay.relay` makes all decisions.
"""
