"""Security: capabilities, seccomp, Landlock, resource limits, as plain specs that become plan operations.

`Security` says what a container's programs are allowed; `ops` makes plan operations of it. `Rlimits` are one program's
resource limits; `rlimit_settings` makes numbers of them. The parts stand alone, too: a `Policy` of one's own, compiled by
`compile_policy`, is good for any seccomp(2) user. Nothing here touches the kernel but `hard_limits`, which reads.
"""

from __future__ import annotations

from sandbox.sec.capabilities import capability_mask, capability_names
from sandbox.sec.compiler import compile_policy
from sandbox.sec.landlock import landlock_op
from sandbox.sec.policy import ALLOW, KILL_PROCESS, LOG, NOTIFY, Action, Condition, Policy, Rule, among, eq, fail, ge, gt, le, lt, ne, rule
from sandbox.sec.profiles import Profile, namespace_limits_ops, profile_policy
from sandbox.sec.rlimits import Rlimits, hard_limits, rlimit_settings
from sandbox.sec.security import Security, ops, unenforced
from sandbox.sec.syscalls import Arch, syscall_name, syscall_number

__all__ = [
    "ALLOW",
    "KILL_PROCESS",
    "LOG",
    "NOTIFY",
    "Action",
    "Arch",
    "Condition",
    "Policy",
    "Profile",
    "Rlimits",
    "Rule",
    "Security",
    "among",
    "capability_mask",
    "capability_names",
    "compile_policy",
    "eq",
    "fail",
    "ge",
    "gt",
    "hard_limits",
    "landlock_op",
    "le",
    "lt",
    "namespace_limits_ops",
    "ne",
    "ops",
    "profile_policy",
    "rlimit_settings",
    "rule",
    "syscall_name",
    "syscall_number",
    "unenforced",
]
