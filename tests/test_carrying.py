"""`carry` lets work that outlives its request keep the request's token."""

import asyncio
import contextlib
import functools
import inspect
import pickle
import threading

import pytest
from opentelemetry import context as otel_context

from otel_token_relay import BearerToken, carry, current_token, use_token
from otel_token_relay.context import with_token
from tests.support.current import ALICE, BOB, shown


def in_thread(work):
    """Run *work* in a thread that inherits no context, and return the result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


def test_a_carried_function_outlives_the_request():
    """A carried function runs in any thread with the token that was current when it was carried."""
    with use_token(ALICE):
        work = carry(shown)

    with use_token(BOB):
        assert work() == ALICE
        assert shown() == BOB
    assert in_thread(work) == ALICE
    assert in_thread(shown) is None
    assert work.__name__ == "shown"


def test_arguments_and_exceptions_are_passed_through():
    """`carry` passes arguments and exceptions through unchanged."""
    with use_token(ALICE):
        work = carry(int)

    assert work("ff", base=16) == 255
    with pytest.raises(ValueError, match="invalid literal"):
        work("x")
    assert current_token() is None


def test_coroutines_are_carried():
    """A coroutine function and a coroutine can be carried, and the task's context is unchanged."""

    async def work(value):
        await asyncio.sleep(0)
        return value, shown()

    async def main():
        with use_token(ALICE):
            function, coroutine = carry(work), carry(work(2))
        return await function(1), await asyncio.create_task(coroutine), shown()

    assert asyncio.run(main()) == ((1, ALICE), (2, ALICE), None)


def test_an_asynchronous_generator_is_carried_step_by_step():
    """Between the steps of a carried asynchronous generator, the consumer runs with its own token."""
    closed = []

    async def work():
        try:
            while True:
                try:
                    received = yield shown()
                except KeyError:
                    received = "thrown"
                if received:
                    yield received, shown()
        finally:
            closed.append(shown())

    async def main():
        with use_token(ALICE):
            generator = carry(work)()
        with use_token(BOB):
            steps = [await anext(generator), shown(), await generator.asend("sent"), shown()]
            steps.append(await anext(generator))
            steps.append(await generator.athrow(KeyError))
            await generator.aclose()
            steps.append(shown())
        return steps

    assert asyncio.run(main()) == [ALICE, BOB, ("sent", ALICE), BOB, ALICE, ("thrown", ALICE), BOB]
    assert closed == [ALICE]


def test_an_asynchronous_generator_ends():
    """A carried asynchronous generator ends after its last value."""

    async def work():
        yield 1
        yield 2

    async def main():
        with use_token(ALICE):
            carried = carry(work)
        return [value async for value in carried()]

    assert asyncio.run(main()) == [1, 2]


def test_no_token_is_carried_from_a_request_that_has_ended():
    """No token is carried from a request that has ended."""
    with use_token(ALICE):
        kept = otel_context.get_current()

    attached = otel_context.attach(kept)
    try:
        work = carry(shown)
    finally:
        otel_context.detach(attached)
    with use_token(BOB):
        assert work() is None


def test_a_carried_token_is_usable_for_the_given_seconds():
    """A carried token is usable for the given number of seconds after the work is carried."""
    with use_token(ALICE):
        brief, long = carry(shown, seconds=0), carry(shown, seconds=60)

    assert brief() is None
    assert long() == ALICE


def test_carrying_does_not_reset_the_age_of_a_token():
    """A token without a lease keeps its age, regardless of how often it is carried."""
    token = BearerToken(ALICE, received_at=5.0)
    attached = otel_context.attach(with_token(token))
    try:
        work = carry(lambda: current_token().received_at)
    finally:
        otel_context.detach(attached)

    assert work() == 5.0


def test_a_value_cannot_be_carried():
    """`carry` accepts only functions, coroutines, and generators."""
    with pytest.raises(TypeError, match="carry supports only"):
        carry(5)


@contextlib.contextmanager
def manager():
    yield shown()


@contextlib.asynccontextmanager
async def async_manager():
    yield shown()


class Managed:
    @contextlib.contextmanager
    def method(self):
        yield


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(manager, id="function"),
        pytest.param(async_manager, id="async function"),
        pytest.param(Managed().method, id="method"),
        pytest.param(manager(), id="manager"),
        pytest.param(async_manager(), id="async manager"),
    ],
)
def test_a_context_manager_cannot_be_carried(work):
    """`carry` rejects a context manager, because the body of its block would run without the token."""
    with pytest.raises(TypeError, match="with block"):
        carry(work)


def test_a_function_that_uses_a_context_manager_is_carried():
    """A carried function has the token, including inside a context manager's block."""

    def work():
        with manager() as inside:
            return inside, shown()

    with use_token("a"):
        carried = carry(work)

    assert carried() == ("a", "a")


def test_work_that_is_carried_twice_keeps_the_first_token_and_time():
    """Work that is carried twice keeps the first token and time, for example, when an executor also carries it."""
    with use_token("a"):
        brief = carry(carry(shown, seconds=0), seconds=60)
        long = carry(carry(shown, seconds=60), seconds=0)
    with use_token("b"):
        other = carry(long)

    assert (brief(), long(), other()) == (None, "a", "a")


def test_a_generator_is_carried_step_by_step():
    """Between the steps of a carried generator, the consumer runs with its own token."""
    closed = []

    def work():
        try:
            try:
                received = yield shown()
            except KeyError:
                received = "thrown"
            yield received, shown()
            return shown()
        finally:
            closed.append(shown())

    with use_token(ALICE):
        function, running = carry(work), carry(work())
    with use_token(BOB):
        generator = function()
        steps = [next(generator), shown(), generator.send("sent"), shown()]
        with pytest.raises(StopIteration) as end:
            next(generator)
        assert next(running) == ALICE
        assert running.throw(KeyError) == ("thrown", ALICE)
        running.close()

    assert steps == [ALICE, BOB, ("sent", ALICE), BOB]
    assert end.value.value == ALICE
    assert closed == [ALICE, ALICE]


@pytest.mark.parametrize("kind", ["lambda", "partial", "callable object"])
def test_the_coroutine_that_a_function_returns_is_carried(kind):
    """If a carried function returns a coroutine, the coroutine also runs with the token."""

    class Callable:
        async def __call__(self):
            return shown()

    async def work():
        await asyncio.sleep(0)
        return shown()

    functions = {"lambda": lambda: work(), "partial": functools.partial(work), "callable object": Callable()}
    with use_token(ALICE):
        carried = carry(functions[kind])

    async def main():
        return await carried(), shown()

    assert asyncio.run(main()) == (ALICE, None)


def test_carried_functions_keep_their_kind():
    """Carried functions keep their kind, which frameworks inspect before they call a function."""

    def generator():
        yield

    async def coroutine():
        pass

    async def async_generator():
        yield

    assert inspect.isgeneratorfunction(carry(generator))
    assert inspect.iscoroutinefunction(carry(coroutine))
    assert inspect.isasyncgenfunction(carry(async_generator))
    assert not inspect.iscoroutinefunction(carry(shown))


def test_carried_work_cannot_be_sent_to_another_process():
    """Carried work cannot be pickled, because a pickled token would outlive its lease."""
    with use_token(ALICE):
        work = carry(shown)

    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pickle.dumps(work)
