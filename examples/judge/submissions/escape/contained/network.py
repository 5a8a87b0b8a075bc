# Reaches the host's loopback, or anything at all.
import socket
import sys

got = [f"interface {name}" for _, name in socket.if_nameindex() if name != "lo"]
for line in sys.stdin:
    kind, *rest = line.split()
    try:
        if kind == "tcp":
            with socket.create_connection((rest[0], int(rest[1])), timeout=2) as s:
                got.append(f"{line.strip()}: {s.recv(100)!r}")
        elif kind == "unix":
            with socket.socket(socket.AF_UNIX) as s:
                s.connect("\0" + rest[0])
                got.append(f"{line.strip()}: {s.recv(100)!r}")
        elif kind == "udp":
            with socket.socket(type=socket.SOCK_DGRAM) as s:
                s.connect((rest[0], int(rest[1])))
                got.append(f"{line.strip()}: there is a way out")
    except OSError:
        pass
print("\n".join(got) or "nothing")
