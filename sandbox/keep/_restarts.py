"""When a program is run again that has ended: ``--restart``, by Docker's rules. Pure.

After each end that the policy minds there is a pause: 100 ms, then twice the last one, and a minute at most; a run of 10 s begins anew. So a program
that ends at once is run 10 times in the first minute and a half, and once a minute from then on.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import define, field, frozen

from sandbox import UsageError

FIRST_S: Final = 0.1
FACTOR: Final = 2
LONGEST_S: Final = 60.0
LONG_RUN_S: Final = 10.0  # after which the pauses begin anew
POLICIES: Final = ("no", "on-failure", "always", "unless-stopped")
_COUNT: Final = re.compile(r"[0-9]{1,9}", re.ASCII)


@frozen
class Policy:
    """*most*: how often, with "on-failure"; 0 is as often as it fails.

    "always" and "unless-stopped" would differ by what a daemon does when it starts: there is none.
    """

    name: str = "no"
    most: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.most}" if self.most else self.name


def to_policy(text: object) -> Policy:
    """``no``, ``on-failure[:N]``, ``always``, ``unless-stopped``. Raises: UsageError."""
    name, colon, count = text.partition(":") if isinstance(text, str) else ("?", "", "")
    if name not in POLICIES:
        raise UsageError(f"restart: {text!r} is unknown; there are no, on-failure[:N], always and unless-stopped")
    if colon and name != "on-failure":
        raise UsageError(f"restart: {text!r}: only on-failure has a number of times")
    if colon and not _COUNT.fullmatch(count):
        raise UsageError(f"restart: {text!r}: {count!r} is no number of times")
    return Policy(name, int(count) if colon else 0)


@define
class Restarts:
    """What has been restarted, and how long the next pause is."""

    policy: Policy = field(factory=Policy)
    count: int = 0
    _pause: float = 0.0

    def begin(self) -> None:
        """Somebody has started it: nothing counts that was before."""
        self.count, self._pause = 0, 0.0

    def after(self, *, failed: bool, ran_s: float) -> float | None:
        """A run has ended by itself; gives the pause before the next one, None for no next one."""
        if ran_s >= LONG_RUN_S:
            self._pause = 0.0
        self._pause = min(self._pause * FACTOR or FIRST_S, LONGEST_S)
        if not self._is_due(failed=failed):
            return None
        self.count += 1
        return self._pause

    def _is_due(self, *, failed: bool) -> bool:
        if self.policy.name == "on-failure":
            return failed and (not self.policy.most or self.count < self.policy.most)
        return self.policy.name != "no"
