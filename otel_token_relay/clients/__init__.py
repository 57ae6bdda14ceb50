"""The hooks for each client: they determine where a request goes and which headers it has, and add a header.

Each module supports one library and never imports that library: its ``patch`` function receives the library's module
once the application has imported it. `otel_token_relay.relay` makes all decisions.
"""
