"""The beginning of a keeper, in its own process; see `_launch` for how it comes into being."""


from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any, Final

from sandbox import Bind, BrokenError, Container, SandboxError, Tmpfs, UsageError, Volume
from sandbox.keep._health import Health, to_check
from sandbox.keep._keeper import Keeper
from sandbox.keep._launch import LENGTH, MAX_WISHES, Wishes
from sandbox.keep._links import with_links
from sandbox.keep._owners import with_owner
from sandbox.keep._record import ID_DIGITS, Config
from sandbox.keep._restarts import Policy, to_policy
from sandbox.keep._service import Service
from sandbox.keep._store import ERRORS, SOCKET, ContainerStore, Place
from sandbox.keep._wire import encode, error_of

_BACKLOG: Final = 128
_SHOWN: Final = ("hostname", "user", "cwd", "memory", "swap", "cpus", "pids", "read_only", "strict")


def main(fd: int) -> None:
    """Be the keeper, whose caller is at the other end of *fd*; never returns."""
    os.umask(0o077)
    code = 1
    try:
        with socket.socket(fileno=fd) as caller:
            caller.set_inheritable(False)
            keeper = _begun(caller)
        if keeper is not None:
            keeper.run()
            if isinstance(keeper.serve, Service):
                keeper.serve.finish()
        code = 0
    except BaseException:  # noqa: BLE001 - told where somebody may look, as there is nobody to be told
        import traceback

        traceback.print_exc()
    finally:
        # Whatever is left in threads: the launcher's janitor removes the container, however we end.
        os._exit(code)


def _begun(caller: socket.socket) -> Keeper | None:
    """Start what the caller wants, and tell; None: it has failed, or nobody wants it any more."""
    keeper = None
    try:
        wishes = _take(caller)
        keeper, warnings = _start(wishes)
        answer = {"ok": {"id": keeper.config.id, "warnings": warnings}}
    except Exception as error:  # noqa: BLE001 - the caller's to know
        answer = {"error": error_of(with_owner(error) if isinstance(error, SandboxError) else error)}
    try:
        caller.sendall(encode(answer))
    except OSError:  # the caller has gone: nobody knows that there is something to remove
        if keeper is not None:
            keeper.remove(force=True)
    return keeper


def _take(caller: socket.socket) -> Wishes:
    with caller.makefile("rb") as file:
        head = file.read(LENGTH.size)
        size = LENGTH.unpack(head)[0] if len(head) == LENGTH.size else 0
        raw = file.read(min(size, MAX_WISHES))
    wishes = pickle.loads(raw) if raw and len(raw) == size else None  # noqa: S301 - our caller's own, see above
    if not isinstance(wishes, Wishes):
        raise BrokenError("the caller has ended before it said what it wants")
    return wishes


def _start(wishes: Wishes) -> tuple[Keeper, list[str]]:
    from sandbox.cli.groups import with_groups

    options = _container_options(wishes)
    made = Container(**options)
    argv = _argv(made, wishes)
    check = to_check(wishes.health, None if made.image is None else made.image.settings)
    policy = _policy(wishes)
    ident = os.urandom(ID_DIGITS // 2).hex()
    config = Config(
        id=ident,
        name=wishes.name,
        created=time.time(),
        image=str(wishes.container.get("image") or ""),
        command=[os.fsdecode(word) for word in argv],
        keeper=os.getpid(),
        labels={**made.labels, **wishes.labels},
        remove=wishes.remove,
        tty=wishes.tty,
        interactive=wishes.interactive,
        restart=str(policy),
        log_size=wishes.log_size,
        options={**_shown(made, wishes), **({} if check is None else {"healthcheck": check.document()})},
    )
    store = ContainerStore(wishes.store)
    place, listener = store.make(config, _prepare)
    with contextlib.ExitStack() as undo:
        undo.callback(store.discard, place, is_keeper=True)
        networks = contextlib.ExitStack()
        if isinstance(options["net"], list):
            from sandbox.cli.networks import new_networks

            for network in new_networks(options):
                networks.enter_context(network)
        undo.callback(networks.close)
        keepers: list[Keeper] = []

        def begin() -> None:
            container = Container(**options)
            strict = bool(options.get("strict", True))
            keeper = Keeper(store, place, config, container, argv, wishes.options, strict, listener, Service(), networks.close)
            keeper.health = None if check is None else Health(check)
            keeper.restarts.policy, keeper.stop_signal = policy, _stop_signal(made)
            keeper.tell("create")
            try:
                keeper.start()
            except BaseException:
                container.close()
                raise
            keepers.append(keeper)

        with_groups(begin)
        os.chdir("/")  # relative paths have been resolved
        undo.pop_all()
    keeper = keepers[0]
    return keeper, [] if keeper.strict else list(keeper.container.degraded)


def _policy(wishes: Wishes) -> Policy:
    policy = to_policy(wishes.restart)
    if wishes.remove and policy.name != "no":
        raise UsageError("conflicting options: cannot specify both --restart and --rm")
    return policy


def _stop_signal(container: Container) -> int:
    """As `Container.stop` reads it, which refuses what is none."""
    text = "" if container.image is None else container.image.settings.stop_signal
    word, _, more = (text or "TERM").upper().removeprefix("SIG").partition("+")
    number = int(word) if word.isdigit() else int(getattr(signal, f"SIG{word}", signal.SIGTERM))
    return number + (int(more) if more.isdigit() else 0)


def _shown(container: Container, wishes: Wishes) -> dict[str, Any]:
    """What people look for in `inspect`, and links take."""
    said = {name: value for name in _SHOWN if isinstance(value := wishes.container.get(name), (str, int, float))}
    words = ["none"]
    if any(wishes.network.values()):
        from sandbox.cli.networks import meant

        words = meant(wishes.network) or words
    words_of = {name: word for name in ("ipc", "uts", "cgroupns") if (word := wishes.network.get(name))}
    mounts = [_mount(mount) for mount in wishes.container.get("mounts", ())]
    return {**said, **words_of, "env": dict(container.spec.env), "exposed": [*container.exposed_ports], "network": words, "mounts": mounts}


def _mount(mount: Bind | Tmpfs | Volume) -> dict[str, Any]:
    """By Docker's names."""
    writable = isinstance(mount, Tmpfs) or not mount.read_only
    found: dict[str, Any] = {"Type": type(mount).__name__.lower(), "Source": "", "Destination": mount.target, "RW": writable}
    if isinstance(mount, Bind):
        found["Source"] = os.fspath(mount.source)
    elif isinstance(mount, Volume):
        found["Name"] = mount.name or ""
    return found


def _prepare(place: Place) -> socket.socket:
    """Take the lock, have a place for complaints, and listen, all before anybody sees the container."""
    place.hold()
    fd = os.open(ERRORS, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600, dir_fd=place.fd)
    os.dup2(fd, 2)
    os.close(fd)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(place.address)
    os.chmod(SOCKET, 0o600, dir_fd=place.fd)
    listener.listen(_BACKLOG)
    return listener


def _container_options(wishes: Wishes) -> dict[str, Any]:
    said = {name: value for name, value in wishes.network.items() if value}
    links = said.pop("link", [])
    options = {**wishes.container, "name": wishes.name, "net": None}
    if said:
        from sandbox.cli import networks, sharing

        parsed = argparse.Namespace(**{"network": [], **said})
        options |= {**networks.arguments(parsed), **sharing.arguments(parsed)}
    return with_links(options, links)


def _argv(container: Container, wishes: Wishes) -> list[Any]:
    if wishes.entrypoint is not None:
        words = [*([wishes.entrypoint] if wishes.entrypoint else []), *(wishes.program or ())]
        if not words:
            raise UsageError("--entrypoint '': then nothing is left to run; give a program")
        return words
    return container.command(wishes.program) if container.image is not None else list(_required(wishes.program))


def _required(program: Sequence[Any] | None) -> Sequence[Any]:
    if not program:
        raise UsageError("no program; give it and its arguments")
    return program
