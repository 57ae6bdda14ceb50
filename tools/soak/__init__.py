"""The soak tests: many users call real processes at once, and no user's token may go astray.

python -m tools.soak            two hops
python -m tools.soak.threads    three hops, through threads and tasks
python -m tools.soak.exchange   one hop to each of four destinations, with a token of its own for each
"""
