"""Server boundaries: bind the token of a request, or none, and end the lease with the response.

Instrumentation alone is not enough: it skips ``extract`` when a span is already current, and event loops
start the next request of a connection in the context of the previous one.
"""
