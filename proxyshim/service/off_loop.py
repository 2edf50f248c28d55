"""Calls that may hang: on a thread that holds up neither the event loop nor the end of the process.

The loop's own executor is not fit for them, because at the end of the process it waits for all of
its threads.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def call_in_thread(
    function: Callable[P, T], *args: P.args, **options: P.kwargs
) -> T:
    """Return what *function* returns, or raise what it raises.

    If the caller is cancelled, the thread continues, and nobody waits for it.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def note(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, failure = None, None
        try:
            result = function(*args, **options)
        except Exception as error:  # noqa: BLE001 - raised again in the caller
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(note, result, failure)

    threading.Thread(target=work, name=function.__name__, daemon=True).start()
    return await done
