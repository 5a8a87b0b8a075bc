# Looks for what another run has, or had: files, processes, sockets.
import os
import socket
import sys

got = []
for top in "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run", "/var":
    for directory, _, names in os.walk(top):
        got += [f"{directory}/{name}" for name in names if name == "flag"]

for pid in filter(str.isdecimal, os.listdir("/proc")):
    if int(pid) not in (1, os.getpid()):
        got.append(f"process {pid}")

for line in sys.stdin:
    kind, *rest = line.split()
    try:
        if kind == "unix":
            with socket.socket(socket.AF_UNIX) as s:
                s.connect("\0" + rest[0])
            got.append(line)
        if kind == "tcp":
            with socket.create_connection((rest[0], int(rest[1])), timeout=2):
                got.append(line)
    except OSError:
        pass
print("\n".join(got) or "nothing")
