"""The second service, which runs on Flask and threaded gunicorn."""

from __future__ import annotations

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import requests
import urllib3
from flask import Flask, Response, jsonify, request

from tools.soak.services import LazyPool, Tally

BACK = os.environ["BACK_URL"]
MAX_DELAY = 0.004
SLOW_SECONDS = 0.03

app = Flask(__name__)
tally = Tally()
pool = ThreadPoolExecutor(8)
lazy_pool = LazyPool()
session = requests.Session()
session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=64))
manager = urllib3.PoolManager(maxsize=64)


def ask(user: str, late: bool) -> bool:
    """Call the third service with the requests library, as most applications do."""
    return session.get(f"{BACK}/back?user={user}&late={int(late)}", timeout=60).text == "right"


def ask_by_urllib3(user: str, late: bool) -> bool:
    return manager.request("GET", f"{BACK}/back?user={user}&late={int(late)}", timeout=60).data == b"right"


@app.get("/middle")
def middle() -> Response | tuple[str, int]:
    user, way, late = request.args["user"], request.args["way"], request.args.get("late") == "1"
    is_right = tally.check(user, request.headers.get("Authorization"), late=late)
    time.sleep(random.random() * MAX_DELAY)
    if way == "fail":
        return "try again", 503
    if way == "slow":
        time.sleep(SLOW_SECONDS)
    if way == "thread":
        found: list[bool] = []
        thread = threading.Thread(target=lambda: found.append(ask(user, late)))
        thread.start()
        thread.join()
        is_right &= found == [True]
    elif way == "executor":
        is_right &= all(pool.map(lambda call: call(user, late), (ask, ask_by_urllib3)))
    elif way == "pool":
        is_right &= lazy_pool.run(ask, user, late)
    else:
        is_right &= ask(user, late)
    return Response("right" if is_right else "not right")


@app.get("/stats")
def stats() -> Response:
    return jsonify(tally.counts)
