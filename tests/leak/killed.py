"""Kill an embedding process with SIGKILL at a chosen moment, and say which of its processes outlive it.

`run_and_kill` is for tests. It starts this module as a program of its own, because of what that program is: a child
subreaper (prctl(2)), to which every orphan of the embedding process comes, whatever it did to get away. When the subreaper
has no child left, nothing is left; nothing else on the machine can be mistaken for ours.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time

from tests.leak.snapshot import Snapshot, descendants, describe

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
READY = b"ready\n"


def run_and_kill(code: str, *, delay_s: float = 0.0, patience_s: float = 1.0) -> list[str]:
    """Run Python *code*, kill it *delay_s* after it has printed ``ready``, and list what is left *patience_s* later.

    What is counted is what `Snapshot` counts, and the processes that the killed one has left. They are killed, then.
    Raises: RuntimeError when the code ends before it says that it is ready.
    """
    from tests.support import patience  # not in the program that this module is, too: it would have to wait for pytest

    before = Snapshot.take()
    command = [sys.executable, "-m", "tests.leak.killed", str(delay_s), str(patience(patience_s)), code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the embedding process failed before it was killed:\n{done.stderr}")
    outlived: list[str] = json.loads(done.stdout)
    return [f"processes: {line}" for line in outlived] + before.wait_until_clean(patience_s)


def main(delay_s: float, patience_s: float, code: str) -> int:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    # Blocked, so that it can be waited for; the child below must not inherit that.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    embedding = subprocess.Popen([sys.executable, "-c", _UNBLOCK + code], stdout=subprocess.PIPE)
    assert embedding.stdout is not None
    if embedding.stdout.readline() != READY:
        embedding.kill()
        return 1
    time.sleep(delay_s)  # the moment of the kill is what is being tried out
    embedding.kill()
    embedding.wait()
    outlived = _wait_for_orphans(time.monotonic() + patience_s)
    print(json.dumps(outlived))
    return 0


_UNBLOCK = "import signal; signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])\n"


def _wait_for_orphans(deadline: float) -> list[str]:
    """Reap what ends until *deadline*; then list what is still there, and kill it."""
    while _reap() and (left_s := deadline - time.monotonic()) > 0:
        signal.sigtimedwait([signal.SIGCHLD], left_s)
    outlived = [pid for pid in descendants(os.getpid()) if describe(pid)]
    said = [describe(pid) for pid in outlived]
    for pid in outlived:
        os.kill(pid, signal.SIGKILL)
    return said


def _reap() -> bool:
    """Reap every child that has ended; say whether there are others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3]))
