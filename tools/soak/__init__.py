"""The soak tests, in which many users call real processes simultaneously and each token must stay with its user.

python -m tools.soak            two hops
python -m tools.soak.threads    three hops, through threads and tasks
python -m tools.soak.exchange   one hop to each of four destinations, with a token of its own for each
"""
