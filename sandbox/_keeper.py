"""A thread that does what nobody should wait for, and sleeps otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from attrs import define, field

_GRACE_S: Final = 30.0


@define(eq=False)
class Keeper:
    """Calls *work* again and again after `wake`, in a thread of its own, until that has nothing to do.

    *work* says in how many seconds it wants to be called again; None: after the next `wake`. It must not raise. The thread is a daemon, and
    starts with the first `wake`.
    """

    _work: Callable[[], float | None] = field(alias="work")
    _is_over: bool = False
    _event: threading.Event = field(factory=threading.Event)
    _thread: threading.Thread | None = None
    _lock: threading.Lock = field(factory=threading.Lock)

    def wake(self) -> bool:
        """There is something to do. False: nobody will, as no thread is to be had (RLIMIT_NPROC, pids.max); the next `wake` tries again."""
        if self._thread is None:
            with self._lock:
                if self._thread is None and not self._is_over:
                    thread = threading.Thread(target=self._run, name="sandbox-pool", daemon=True)
                    try:
                        thread.start()
                    except RuntimeError:
                        return False
                    self._thread = thread
        self._event.set()
        return True

    def _run(self) -> None:
        pause: float | None = None
        while True:
            self._event.wait(pause)
            self._event.clear()
            if self._is_over:
                return
            pause = self._work()

    def close(self) -> None:
        """End it, and wait for what it is doing."""
        with self._lock:
            self._is_over = True
            thread = self._thread
        self._event.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_GRACE_S)
