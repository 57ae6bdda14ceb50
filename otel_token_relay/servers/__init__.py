"""The server boundaries: they bind a request's token, or none, and end the lease with the response.

Instrumentation alone is not enough: it skips ``extract`` when a span is already current, and event loops
start a connection's next request in the context of the previous one.
"""
