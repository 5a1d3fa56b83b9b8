"""Does the same to many things at once.

Not with an executor: those refuse work from the moment Python begins to end, and that is when a
command's last orders go out.
"""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


def map_at_once(do: Callable[[_T], _R], items: Sequence[_T], *, threads_max: int) -> list[_R]:
    """Return what `do` returns for each item, in the items' order. Blocks until all are done.

    Raises:
        BaseException: what `do` raised for the first item that it failed for.
    """
    waiting = iter(range(len(items)))
    done: dict[int, _R] = {}
    failed: dict[int, BaseException] = {}
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                at = next(waiting, None)
            if at is None:
                return
            try:
                done[at] = do(items[at])
            except BaseException as exc:  # noqa: BLE001 - raised again below, where it is waited for
                failed[at] = exc

    threads = [threading.Thread(target=work) for _ in range(min(threads_max, len(items)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[min(failed)]
    return [done[at] for at in range(len(items))]
