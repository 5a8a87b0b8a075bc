"""What a container is to be, as one frozen value: everything is checked here, before anything is touched."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

from attrs import field, frozen

from sandbox import ns
from sandbox._types import Env, StrPath, to_bool, to_env, to_inside_path, to_items, to_size, to_text
from sandbox.cg import Limits
from sandbox.errors import ImageError, UsageError
from sandbox.fs import (
    MAX_SERVERS,
    Bind,
    Directory,
    FilesystemSpec,
    HostView,
    Layers,
    Resolver,
    Root,
    Scratch,
    Tmpfs,
    Volume,
    host_resolver,
    to_address,
    to_host_name,
)
from sandbox.sec import Rlimits, Security

if TYPE_CHECKING:
    from sandbox._imaged.origin import Origin
    from sandbox.image import Image, Store

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_USER: Final = "1000:1000"  # of a view of the host; "sandbox" in its /etc/passwd
_PAGE: Final = 4096
LEAST_MEMORY: Final = 1 << 20  # bytes: what execve itself charges to a group, with room to spare
NPROC: Final = 4096  # processes of one user in one container, when nothing else was said: RLIMIT_NPROC counts per user namespace
Mount = Bind | Tmpfs | Volume
_ALONE: Final = Resolver()


def to_root(image: StrPath | Directory | Layers | Image | None, store: Store | StrPath | None = None) -> tuple[Root, Origin | None]:
    """What *image* names: None is a view of the host; a path a directory; anything else an image of *store*, which is the second value then.

    A path object is a path, and a text that begins with ``/``, ``./`` or ``../``, or that has a slash and is there. What has none is never one.
    """
    if image is None:
        return HostView(), None
    if isinstance(image, (Directory, Layers)):
        return image, None
    if not isinstance(image, (str, os.PathLike)):
        return _of_image(image)
    path = os.fsdecode(to_text(image, what="image"))
    if not path:
        raise UsageError("image: empty; give an image, a directory, or None for a view of the host's programs")
    if isinstance(image, str) and _is_reference(path):
        from sandbox._imaged.origin import find

        origin = find(path, store)
        return origin.root, origin
    return _to_directory(path), None


def _is_reference(text: str) -> bool:
    if text.startswith(("/", "./", "../")) or text in (".", ".."):
        return False
    return "/" not in text or not os.path.isdir(text)


def _of_image(image: object) -> tuple[Root, Origin]:
    from sandbox._imaged.origin import of_image
    from sandbox.image import Image

    if not isinstance(image, Image):
        raise UsageError(f"image: {image!r} is not an image, its name, a path, or None for a view of the host")
    origin = of_image(image)
    return origin.root, origin


def _to_directory(path: str) -> Directory:
    try:
        is_directory = stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        words = "no such directory" if isinstance(error, FileNotFoundError) else error.strerror
        raise UsageError(f"image: {path}: {words}; give the directory of an unpacked root file system") from error
    if not is_directory:
        raise ImageError(f"image: {path} is a file; give the directory of an unpacked root file system")
    return Directory(path)


def to_mounts(mounts: Iterable[Mount | str]) -> tuple[Mount, ...]:
    """Give strings their meaning, and check the kinds of mounts; targets are checked by each and by FilesystemSpec."""
    if isinstance(mounts, (Bind, Tmpfs, Volume, str)):
        raise UsageError(f"mounts: give a list, [{mounts!r}]")
    found = tuple(mounts)
    if any(isinstance(mount, str) for mount in found):
        from sandbox.fs import to_mount  # needed by few

        return tuple(map(to_mount, found))
    return cast("tuple[Mount, ...]", found)


def has_tmp(mounts: Iterable[Mount]) -> bool:
    """Whether the caller mounts something on /tmp."""
    return any(mount.target == "/tmp" for mount in mounts)  # noqa: S108 - a path inside


def filesystem(
    root: Root,
    *,
    mounts: tuple[Mount, ...],
    read_only: bool,
    scratch: Scratch | None,
    shm: int | str,
    security: Security,
    private_ipc: bool,
    private_net: bool,
    origin: Origin | None = None,
    workdir: str = "/",
) -> FilesystemSpec:
    """The file systems of a container from the facade's words."""
    if read_only and scratch is not None:
        raise UsageError("read_only=True leaves nothing for scratch= to hold; give one of the two")
    layer = None if read_only else scratch or Scratch()
    masks: dict[str, Any] = {} if security.masks else {"masked": (), "read_only_paths": ()}
    sysfs = None if private_net else False
    if isinstance(root, Layers):
        taken = {mount.target for mount in mounts}
        masks |= {"workdir": workdir, "writable_places": () if origin is None else tuple(path for path in origin.volumes if path not in taken)}
    return FilesystemSpec(
        root=root, scratch=layer, mounts=mounts, shm=shm, mqueue=private_ipc, sysfs=sysfs, suid=not security.no_new_privs, **masks
    )


def to_environment(
    env: Env | Iterable[tuple[str, str]] | None, of_image: Iterable[tuple[str, str]] = ()
) -> tuple[tuple[str, str], ...]:
    """The container's variables: what the caller says over what the image says over PATH and LANG (HOME is added with the user)."""
    base = {"PATH": DEFAULT_PATH, "LANG": "C.UTF-8", **dict(of_image)}
    base.update(to_env(env or ()))
    return tuple(base.items())


@frozen(cache_hash=True, kw_only=True)
class ContainerSpec:
    """One container, checked. Equal specs share their compiled plan."""

    filesystem: FilesystemSpec
    namespaces: ns.Namespaces  # one that it joins is the host's here: init is in it before it carries out anything
    security: Security
    limits: Limits
    rlimits: Rlimits
    net: str | None  # None: a network namespace of its own; "host"
    hostname: str
    env: tuple[tuple[str, str], ...]
    cwd: str
    user: str
    strict: bool = True
    subids: bool = False  # as an ordinary user: the ids of /etc/subuid too
    resolver: Resolver = _ALONE  # of the host, if its network is
    joins: tuple[str, ...] = ()  # kinds of namespaces of which it gets another container's
    image: Image | None = field(default=None, eq=False)  # what it says is in the other fields already

    @property
    def host_view(self) -> bool:
        """Whether the root is a view of the host."""
        return isinstance(self.filesystem.root, HostView)


def to_user(user: int | str | None, root: Root, origin: Origin | None = None) -> str:
    """The default user: 1000:1000 in a view of the host, root in a directory, in an image whom it says."""
    if user is None and origin is not None:
        return origin.user
    if user is None:
        return DEFAULT_USER if isinstance(root, HostView) else "0:0"
    if isinstance(user, bool) or not isinstance(user, (int, str)) or user == "":
        raise UsageError(f"user: {user!r} is not a number, a name, or 'user:group'")
    return str(user)


def to_cwd(cwd: StrPath | None) -> str:
    """The working directory; None is ``/``. A descriptor's path is refused: it would lead outside (CVE-2024-21626)."""
    path = "/" if cwd is None else to_inside_path(cwd, what="cwd")
    if path.startswith("/proc/") and "/fd" in path:
        raise UsageError(f"cwd: {path!r} leads through a descriptor; give a directory of the container")
    return path


def with_tmp(mounts: Iterable[Mount | str]) -> tuple[Mount, ...]:
    """Mounts with a small writable /tmp, unless there is something on it already."""
    checked = to_mounts(mounts)
    return checked if has_tmp(checked) else (*checked, Tmpfs("/tmp"))  # noqa: S108


_known: dict[tuple[Any, ...], tuple[tuple[type, ...], ContainerSpec]] = {}  # by names and values; with the types, as 1 and True are equal
_MOST_KNOWN: Final = 256
_PLAIN: Final = frozenset({type(None), bool, int, float, str, Rlimits, Security, Scratch})
_OF_PLAIN: Final = frozenset({"share", "joins", "mounts", "env"})  # tuples of frozen things, once they were looked at


def build(**arguments: Any) -> ContainerSpec:  # noqa: ANN401 - Container's own arguments, spelled out in _build
    """Check Container's arguments and put them together. The same ones again get the same spec, looked up by what was said."""
    _freeze(arguments)
    key, types = (*arguments, *arguments.values()), tuple(map(type, arguments.values()))
    try:
        known = _known.get(key)
    except TypeError:  # something that cannot be a key
        return _put_together(arguments)
    if known is not None and known[0] == types and _is_there(arguments["image"]):
        return known[1]
    is_plain = _is_plain(arguments)
    spec = _put_together(arguments)
    if is_plain:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = types, spec
    return spec


def _freeze(arguments: dict[str, Any]) -> None:
    """Lists and the like become tuples."""
    for name, like in (("share", "['ipc']"), ("mounts", "[Tmpfs('/tmp')]")):
        value = arguments[name]
        if not isinstance(value, (tuple, str, Bind, Tmpfs, Volume)):
            arguments[name] = to_items(value, what=name, like=like)
    if arguments["mounts"] != ():
        arguments["mounts"] = to_mounts(arguments["mounts"])  # now: a relative source is of the directory that is current now
    if (env := arguments["env"]) is not None:
        arguments["env"] = to_env(env)


def _is_plain(arguments: dict[str, Any]) -> bool:
    """Whether what was said means the same whenever it is said: no names of images, no relative paths, nothing of the host's network."""
    image = arguments["image"]
    if arguments["net"] is not None or not (image is None or (type(image) is str and image.startswith("/"))):
        return False
    return all(type(value) in _PLAIN or (type(value) is tuple and (not value or name in _OF_PLAIN)) for name, value in arguments.items())


def _is_there(image: str | None) -> bool:
    return image is None or os.path.isdir(image)


def _put_together(arguments: dict[str, Any]) -> ContainerSpec:
    arguments["resolver"] = _to_resolver(arguments["net"], *(arguments.pop(name, ()) for name in ("dns", "dns_search", "extra_hosts")))
    root, origin = to_root(arguments.pop("image"), arguments.pop("store", None))
    try:
        return _cached_build(root, origin, **arguments)
    except TypeError:  # something that cannot be a key: either checked below, or refused there in words
        return _build(root, origin, **arguments)


def _to_resolver(net: object, dns: Any, search: Any, hosts: Any) -> Resolver:  # noqa: ANN401 - the caller's
    """What is known of others by name: the caller's words, and with the host's network what the host knows now."""
    if dns == () and search == () and hosts == ():
        return host_resolver() if net == "host" else _ALONE
    base = host_resolver() if net == "host" else _ALONE
    if not isinstance(hosts, Mapping) and hosts != ():
        raise UsageError(f"extra_hosts: {hosts!r} is not a mapping of names to addresses")
    given = cast("Mapping[Any, Any]", dict(cast("Any", hosts)))
    extra = tuple((to_address(address, what="extra_hosts"), to_host_name(name, what="extra_hosts", most=253)) for name, address in given.items())
    servers = tuple(to_address(address, what="dns") for address in to_items(dns, what="dns", like="['10.0.0.53']"))
    domains = tuple(to_host_name(name, what="dns_search", most=253) for name in to_items(search, what="dns_search", like="['example.org']"))
    if len(servers) > MAX_SERVERS:
        raise UsageError(f"dns: the C library asks no more than {MAX_SERVERS} servers")
    return Resolver(servers or base.nameservers, domains or base.search, (*extra, *base.hosts))


def _build(
    root: Root,
    origin: Origin | None,
    *,
    net: str | None,
    joins: tuple[str, ...],
    share: Iterable[str],
    mounts: Iterable[Mount],
    env: tuple[tuple[str, str], ...] | None,
    cwd: StrPath | None,
    user: int | str | None,
    hostname: str,
    domainname: str | None,
    read_only: bool,
    scratch: Any,  # noqa: ANN401 - Scratch or a size
    shm: int | str,
    security: Security | str,
    rlimits: Rlimits | None,
    strict: bool,
    time_offsets: tuple[float, float] | None,
    subids: bool = False,
    resolver: Resolver = _ALONE,
    **limits: Any,  # noqa: ANN401 - the fields of Limits
) -> ContainerSpec:
    if not isinstance(rlimits, (Rlimits, type(None))):
        raise UsageError(f"rlimits: {rlimits!r} is not an Rlimits; give Rlimits(nofile=64), say")
    own_limits = Limits(**limits)
    _check_memory(own_limits.memory)
    shared = _to_share(share, net, joins)
    walls = security if isinstance(security, Security) else Security(security)
    name = to_host_name(hostname)
    directory = origin.cwd if cwd is None and origin is not None else to_cwd(cwd)
    return ContainerSpec(
        filesystem=filesystem(
            root,
            mounts=to_mounts(mounts),
            read_only=to_bool(read_only, what="read_only"),
            scratch=_to_scratch(scratch),
            shm=shm,
            security=walls,
            private_ipc="ipc" not in shared,
            private_net="net" not in shared,
            origin=origin,
            workdir=directory,
        ),
        namespaces=_to_namespaces(ns.Uts(name, domainname), shared, time_offsets),
        security=walls,
        limits=own_limits,
        rlimits=rlimits or Rlimits(),
        net=net,
        hostname=name,
        env=to_environment(env, () if origin is None else origin.env),
        cwd=directory,
        user=to_user(user, root, origin),
        strict=to_bool(strict, what="strict"),
        subids=to_bool(subids, what="subids"),
        joins=joins,
        resolver=resolver,
        image=None if origin is None else origin.image,
    )


def _to_scratch(value: Any) -> Scratch | None:  # noqa: ANN401 - of the caller's
    if value is None or isinstance(value, Scratch):
        return value
    return Scratch(copy=True) if value == "copy" else Scratch(to_size(value, what="scratch", least=_PAGE))


def _check_memory(memory: int | None) -> None:
    if memory is not None and memory < LEAST_MEMORY:
        raise UsageError(f"memory: {memory} bytes is less than a program takes to start; give at least {LEAST_MEMORY}")


# Typed: 1 and True are equal, but one of the two is refused.
_cached_build: Final = lru_cache(maxsize=256, typed=True)(_build)


def _to_share(share: Iterable[str], net: str | None, joins: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(share, str):
        raise UsageError(f"share: give a list such as [{share!r}]")
    kinds = set(share)
    if unknown := kinds - {"cgroup", "ipc", "uts"}:
        raise UsageError(f"share: {sorted(unknown)} cannot be shared with the host; choose from 'ipc', 'uts', 'cgroup' (and net='host')")
    if net == "host":
        kinds.add("net")
    elif joins and net is None:
        kinds.update(joins)
    elif net is not None:
        raise UsageError(f"net: {net!r} is not None, 'host', a Container or a Network")
    return tuple(sorted(kinds))


def _to_namespaces(uts: ns.Uts, shared: Iterable[str], time_offsets: tuple[float, float] | None) -> ns.Namespaces:
    choices: dict[str, Any] = {"uts": uts}
    if time_offsets is not None:
        if not isinstance(time_offsets, tuple) or len(time_offsets) != 2:
            raise UsageError(f"time_offsets: {time_offsets!r} is not a pair of seconds, (monotonic, boottime)")
        choices["time"] = ns.Time(*time_offsets)
    choices |= {kind: ns.Host() for kind in shared}
    return ns.Namespaces(**choices)
