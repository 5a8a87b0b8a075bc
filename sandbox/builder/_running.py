"""RUN: a command in a container of the image so far; what it changed becomes a layer.

The container has the build's limits, no network unless the build was given one, and sees of the host only what its mounts name. These are pinned by
descriptors: a source is looked up within the context or the stage, and what is bound is what was found.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field, frozen

from sandbox.builder._copying import Sources
from sandbox.builder._job import Job, StoppedError, digest_of
from sandbox.builder._layer import Item, item_of, key_of
from sandbox.builder._mounts import SECRETS, MountSpec, read_mount
from sandbox.builder._owners import id_inside
from sandbox.builder._state import PROXIES, LayerRef, State
from sandbox.builder._tree import Entry
from sandbox.builder._workshop import CacheMount
from sandbox.builder.instructions import Run
from sandbox.errors import DockerfileError, ImageError, UsageError
from sandbox.image import Config, Descriptor, Digest, Image, MediaType, Platform, Settings

if TYPE_CHECKING:  # a step that the cache has needs no container
    from sandbox import Bind, Container, Result, Tmpfs

_SCRIPTS: Final = "/dev/sandbox-build"
MAX_OUTPUT: Final = 1 << 40


@frozen(eq=False, repr=False)
class _Mounted:
    """A mount whose source was found: *origin* and *entry*; None for those that need none."""

    spec: MountSpec
    origin: Sources | None = None
    entry: Entry | None = None


@define(eq=False, repr=False)
class Running:
    """One RUN step."""

    job: Job
    state: State
    run: Run
    sources: Callable[[str], Sources]
    output: Callable[[bytes], None]
    _stack: contextlib.ExitStack = field(factory=contextlib.ExitStack, init=False)

    def done(self) -> tuple[LayerRef | None, str, bool]:
        """Carry it out, or take it from the cache. Raises: DockerfileError: the command failed (`result`), or something of it is wrong."""
        try:
            mounted = [self._find(read_mount(self.run.statement, flag, self.state.names, self.state.working_dir)) for flag in self.run.mounts]
            key = self._key(mounted)
            if (known := self.job.cached(key)) is not None:
                return known[0], known[1], True
            with self._stack:
                layer = self._carry_out(mounted)
        except DockerfileError:
            raise
        except (ImageError, UsageError, OSError) as error:
            raise self.run.statement.error(f"RUN: {error}", 0) from error
        self.job.remember(key, layer)
        return layer, self.job.time, False

    # ---- What is run ----

    def _argv(self) -> list[str]:
        command = self.run.command
        if not command.is_shell:
            return list(command.words)
        (line,) = command.words
        heredocs = self.run.statement.heredocs
        if len(heredocs) == 1 and line.strip() == heredocs[0].word:  # the text is the script itself
            content = heredocs[0].content
            return [f"{_SCRIPTS}/script"] if content.startswith("#!") else [*self.state.shell, content]
        bodies = "".join(f"\n{heredoc.content}{heredoc.name}" for heredoc in heredocs)
        return [*self.state.shell, line + bodies]

    def _script(self) -> bytes:
        """The text of a heredoc that says by ``#!`` what runs it; b"" for none."""
        return self.run.statement.heredocs[0].content.encode() if self._argv() == [f"{_SCRIPTS}/script"] else b""

    def _environment(self) -> dict[str, str]:
        """ARG and ENV; the variables of proxies are handed through, declared or not."""
        names = self.state.names
        options = self.job.options
        return {name: options.build_args[name] for name in PROXIES if name in options.build_args and name not in names} | names

    def _network(self) -> Any:  # noqa: ANN401 - what Container takes
        wanted, given = self.run.network, self.job.options.network
        if wanted == "host" and given != "host":
            raise self.run.statement.error("--network=host, and the build was not given the host's network; ask for it: network='host'", 0)
        return None if wanted == "none" or given in (None, "none") else given

    def _key(self, mounted: list[_Mounted]) -> str:
        environment = {name: value for name, value in self.state.names.items() if name not in PROXIES or name in self.state.environment}
        settings = self.state.settings
        facts = {
            "argv": self._argv(),
            "script": self._script().decode(),
            "env": sorted(environment.items()),
            "user": settings.user,
            "dir": self.state.working_dir,
            "network": repr(self._network()),
            "platform": str(self.state.platform),
            "mounts": [[one.spec.key, self._content(one)] for one in mounted],
            "epoch": self.job.options.epoch,
        }
        return digest_of("run", json.dumps(facts), *(layer.diff_id for layer in self.state.layers))

    # ---- Mounts ----

    def _find(self, spec: MountSpec) -> _Mounted:
        if spec.kind == "secret" and spec.required and spec.id not in self.job.options.secrets:
            raise self.run.statement.error_at(f"--mount: there is no secret {spec.id!r}; give it: secrets={{...}}, --secret", spec.word)
        if spec.kind != "bind" and not spec.from_:
            return _Mounted(spec)
        origin = self.sources(spec.from_)
        located = origin.tree.locate(spec.source or ".").entry
        is_hidden = located is not None and bool(located.parts) and origin.ignored.excludes(located.path)
        if located is None or is_hidden or not (located.is_directory or located.is_file):
            where = spec.from_ or "the context"
            raise self.run.statement.error_at(f"--mount: no file or directory {spec.source!r} in {where}", spec.word)
        if spec.kind == "cache" and not located.is_directory:
            raise self.run.statement.error_at(f"--mount: {spec.source!r} in {spec.from_} is a file; a cache is a directory", spec.word)
        return _Mounted(spec, origin, located)

    def _items(self, one: _Mounted) -> Iterator[Item]:
        origin, entry = one.origin, one.entry
        if origin is None or entry is None:
            return
        for found in (entry, *(origin.below(entry) if entry.is_directory else ())):
            relative = "/".join(found.parts[len(entry.parts) :])
            yield item_of(origin.tree, found, relative or ".", uid=id_inside(found.status.st_uid), gid=id_inside(found.status.st_gid))

    def _content(self, one: _Mounted) -> str:
        return key_of(self._items(one), self.job.hashes) if one.origin is not None else ""

    def _mounts(self, mounted: list[_Mounted]) -> list[Bind | Tmpfs]:
        from sandbox import Bind, Tmpfs

        mounts: list[Bind | Tmpfs] = []
        for one in mounted:
            mounts += self._mount(one)
        if any(one.spec.kind == "secret" and one.spec.target.startswith(f"{SECRETS}/") and self._has_secret(one) for one in mounted):
            mounts.append(Tmpfs(SECRETS, size=16 << 20, mode=0o755))
        if script := self._script():
            path = os.path.join(self.job.workshop.directory(), "script")
            _write(path, script, 0o755)
            mounts.append(Bind(path, f"{_SCRIPTS}/script", read_only=True))
        return mounts

    def _has_secret(self, one: _Mounted) -> bool:
        return one.spec.id in self.job.options.secrets

    def _mount(self, one: _Mounted) -> list[Bind | Tmpfs]:
        from sandbox import Bind, Tmpfs

        spec = one.spec
        match spec.kind:
            case "tmpfs":
                return [Tmpfs(spec.target, size=spec.size) if spec.size else Tmpfs(spec.target)]
            case "cache":
                return [Bind(self._cache(one), spec.target, read_only=spec.read_only)]
            case "bind":
                return [Bind(self._materialise(one), spec.target, read_only=spec.read_only)]
            case _:
                return [self._secret_file(one)] if self._has_secret(one) and spec.target and not spec.target.startswith(f"{SECRETS}/") else []

    def _cache(self, one: _Mounted) -> str:
        spec = one.spec
        # What it began with is part of its name, as in BuildKit: with something else to begin with, it is another cache.
        identity = spec.id if one.origin is None else f"{spec.id}\0{self._content(one)}"
        mount = CacheMount.take(os.path.join(self.job.store.path, "mounts"), identity, spec.sharing)
        self._stack.callback(mount.close)
        if one.origin is not None:
            mount.begin_with(lambda: self._materialise(one))
            return mount.path
        status = os.stat(mount.path)
        wanted = (spec.uid, spec.gid, 0o755 if spec.mode is None else spec.mode)
        if os.geteuid() == 0 and (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) != wanted and not os.listdir(mount.path):
            os.chmod(mount.path, wanted[2])
            os.chown(mount.path, spec.uid, spec.gid)
        return mount.path

    def _materialise(self, one: _Mounted) -> str:
        """Copy what is bound: what .dockerignore leaves out stays out, and what is written is lost, as it should be."""
        top = os.path.join(self.job.workshop.directory(), "bound")
        for item in self._items(one):
            _put(item, top if item.path == "." else os.path.join(top, item.path))
        return top

    def _secret_file(self, one: _Mounted) -> Bind:
        """A secret at a place of its own: a file in the build's directory, which is removed right after the step."""
        from sandbox import Bind

        path = os.path.join(self.job.workshop.directory(), "secret")
        spec = one.spec
        _write(path, self.job.options.secrets[spec.id], 0o400 if spec.mode is None else spec.mode, owner=(spec.uid, spec.gid))
        self._stack.callback(os.unlink, path)
        return Bind(path, spec.target, read_only=True)

    # ---- The container ----

    def _carry_out(self, mounted: list[_Mounted]) -> LayerRef | None:
        if not self.state.platform.fits(Platform.of_this_machine()):
            here = Platform.of_this_machine()
            raise self.run.statement.error(f"RUN of {self.state.platform} on {here}: only this machine's own programs run", 0)
        mounts = self._mounts(mounted)
        image = self._parent()
        container = self._container(image, mounts)
        try:
            with container, self.job.runs(container):
                self._put_secrets(container, mounted)
                self._execute(container, mounted)
                return self._committed(container)
        finally:
            self._forget(image)

    def _parent(self) -> Image:
        """An image of the layers so far, for this step only: that its name is random keeps others from meaning the same."""
        # Without VOLUME: what a step writes there belongs to the image, as BuildKit has it.
        settings = Settings(env=self.state.settings.env, labels=(("sandbox.build.step", os.urandom(16).hex()),))
        config = Config(self.state.platform, tuple(layer.diff_id for layer in self.state.layers), settings)
        return self.job.add_image(config, tuple(layer.blob for layer in self.state.layers))

    def _forget(self, image: Image) -> None:
        """Remove an image of the step; its layers are held by the build. One that stays has no name, and goes with the next pruning."""
        with contextlib.suppress(ImageError):
            self.job.store.remove(image.id)

    def _container(self, image: Image, mounts: list[Bind | Tmpfs]) -> Container:
        from sandbox import Container, Scratch

        options = self.job.options
        return Container(
            image,
            memory=options.memory,
            cpus=options.cpus,
            pids=options.pids,
            net=self._network(),
            mounts=mounts,
            scratch=Scratch(disk=self.job.workshop.directory()),
            hostname="build",
            user=None if os.geteuid() == 0 else self.state.settings.user or None,  # an ordinary user's container has one id: whose the step is
        )

    def _put_secrets(self, container: Container, mounted: list[_Mounted]) -> None:
        for one in mounted:
            spec = one.spec
            if spec.kind == "secret" and self._has_secret(one) and spec.target.startswith(f"{SECRETS}/"):
                mode = 0o400 if spec.mode is None else spec.mode
                owner = f"{spec.uid}:{spec.gid}" if os.geteuid() == 0 else None
                container.write_bytes(spec.target, self.job.options.secrets[spec.id], mode=mode, user=owner)

    def _secret_variables(self, mounted: list[_Mounted]) -> dict[str, str]:
        values = self.job.options.secrets
        return {one.spec.env: values[one.spec.id].decode() for one in mounted if one.spec.env and one.spec.id in values}

    def _execute(self, container: Container, mounted: list[_Mounted]) -> None:
        result = container.exec(
            self._argv(),
            env=self._environment() | self._secret_variables(mounted),
            cwd=self.state.working_dir,
            user=self.state.settings.user or 0,
            timeout=self.job.options.timeout,
            stdout=self.output,
            stderr=self.output,
            output_limit=MAX_OUTPUT,
        )
        if self.job.stopping.is_set():
            raise StoppedError
        if not result.ok:
            raise self._failed(result)

    def _failed(self, result: Result) -> DockerfileError:
        import shlex

        how = f"ended with exit code {result.exit_code}" if result.exit_code is not None else f"ended: {result.status.name}"
        shown = shlex.join(self._argv())
        error = self.run.statement.error(f"RUN {how}: {shown[:200]}", 0, max(1, len(self.run.statement.text)))
        error.result = result
        return error

    def _committed(self, container: Container) -> LayerRef | None:
        """Make a layer of what was written; None: nothing was."""
        image = container.commit(pause=False)  # nothing runs any more
        if len(image.config.diff_ids) == len(self.state.layers):
            self._forget(image)
            return None
        digest = image.config.diff_ids[-1]
        self.job.lease.add(digest)
        self._forget(image)
        if self.job.options.epoch is not None:
            return self._clamped(digest)
        return LayerRef(digest, Descriptor(MediaType.OCI_LAYER, digest, self.job.store.blob_size(digest)))

    def _clamped(self, digest: Digest) -> LayerRef:
        """The same layer with no time later than the build's."""
        from sandbox.image.pack import pack

        fd = os.open(self.job.store.layer_path(digest), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        owner = None if os.geteuid() == 0 else (0, 0)
        try:
            return self.job.add_layer(lambda write: pack(fd, write, clamp_mtime=self.job.options.epoch, owner=owner))
        finally:
            os.close(fd)


def _write(path: str, data: bytes, mode: int, *, owner: tuple[int, int] = (0, 0)) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        os.fchmod(fd, mode)
        if os.geteuid() == 0:
            os.fchown(fd, *owner)


def _put(item: Item, path: str) -> None:
    """Make one file of a copy; nobody else can reach its directory."""
    mode = stat.S_IMODE(item.mode)
    if item.kind == stat.S_IFDIR:
        os.mkdir(path, 0o700)
        os.chmod(path, mode | 0o700)
    elif item.kind == stat.S_IFLNK:
        os.symlink(item.link, path)
    elif item.kind == stat.S_IFIFO:
        os.mkfifo(path, mode)
    elif item.tree is not None and item.entry is not None:
        source = item.tree.open(item.entry)
        with os.fdopen(source, "rb") as reader, open(path, "xb") as writer:
            while chunk := reader.read(1 << 20):
                writer.write(chunk)
            os.fchmod(writer.fileno(), mode)
    if os.geteuid() == 0:
        os.chown(path, item.uid, item.gid, follow_symlinks=False)
