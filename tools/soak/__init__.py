"""The soak tests: many users at once through real processes, and no wrong token.

python -m tools.soak            two hops
python -m tools.soak.threads    three hops, through threads and tasks
"""
