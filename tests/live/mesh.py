"""Runs in a container: answers whoever asks, and asks all those that a line of the standard input names; says who did not answer."""

import select
import socket
import sys
import time

PORT = 7000
ASK, ANSWER = b"?", b"!"


def main():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", PORT))
    print("up", flush=True)
    waiting, deadline, again = set(), 0.0, 0.0
    while True:
        ready, _, _ = select.select([sock.fileno(), 0], [], [], 0.2 if waiting else None)
        if sock.fileno() in ready:
            data, peer = sock.recvfrom(16)
            if data == ASK:
                sock.sendto(ANSWER, peer)
            else:
                waiting.discard(peer[0])
        if 0 in ready:
            line = sys.stdin.readline()
            if not line:
                return
            waiting = set(line.split()[1:])
            deadline, again = time.monotonic() + float(line.split()[0]), 0.0
        if waiting and time.monotonic() >= again:  # datagrams may be lost when the machine is busy: what counts is that one gets through
            again = time.monotonic() + 0.5
            for address in waiting:
                try:
                    sock.sendto(ASK, (address, PORT))
                except OSError as error:
                    print(f"error {address}: {error.strerror}", file=sys.stderr, flush=True)
        if deadline and (not waiting or time.monotonic() > deadline):
            deadline = 0.0
            print("missing", *sorted(waiting), flush=True)
            waiting = set()


if __name__ == "__main__":
    main()
