"""COPY, ADD and WORKDIR, and all that needs no container: what is in the image then, and what is refused."""

from __future__ import annotations

import io
import os
import stat
import tarfile

import pytest

from sandbox.builder import EventKind, build
from sandbox.builder._tree import Tree
from sandbox.errors import DockerfileError, UnsupportedError, UsageError
from sandbox.image import Store, load, save

pytestmark = pytest.mark.unprivileged
OWNER = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's files have one owner")


@pytest.fixture
def context(tmp_path):
    top = tmp_path / "context"
    for path in ("a.txt", "b.txt", "src/x.py", "src/sub/s.md", "secret.env", "dir/with space/f"):
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(path)
    (top / "link").symlink_to("src")
    (top / "src" / "inner-link").symlink_to("../a.txt")
    (top / "src" / "x.py").chmod(0o755)
    return top


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def make(context, store):
    def make(text: str, **options):
        return build(context, dockerfile=text.encode(), store=store, **options)

    return make


def files(image) -> dict[str, str]:
    """The files of an image: what each holds, "/" for a directory, "-> x" for a link."""
    tree = Tree(list(image.layers), layered=True)
    found = {}
    for entry in tree.walk(()):
        if entry.parts:
            found[entry.path] = "/" if entry.is_directory else f"-> {entry.link}" if entry.link else tree.read(entry.path, 1000).decode(errors="replace")
    return found


def status(image, path: str) -> os.stat_result:
    entry = Tree(list(image.layers), layered=True).entry(tuple(path.split("/")))
    assert entry is not None
    return entry.status


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("COPY a.txt /x", {"x": "a.txt"}),
        ("COPY a.txt /d/", {"d": "/", "d/a.txt": "a.txt"}),
        ("COPY a.txt /d/e/x", {"d": "/", "d/e": "/", "d/e/x": "a.txt"}),
        ("COPY a.txt b.txt /d/", {"d": "/", "d/a.txt": "a.txt", "d/b.txt": "b.txt"}),
        ("COPY *.txt /d/", {"d": "/", "d/a.txt": "a.txt", "d/b.txt": "b.txt"}),
        ("COPY ?.txt /d", {"d": "/", "d/a.txt": "a.txt", "d/b.txt": "b.txt"}),
        ("COPY src/ /d", {"d": "/", "d/x.py": "src/x.py", "d/sub": "/", "d/sub/s.md": "src/sub/s.md", "d/inner-link": "-> ../a.txt"}),
        ("COPY src/sub /", {"s.md": "src/sub/s.md"}),
        ("COPY link/x.py /", {"x.py": "src/x.py"}),
        ("COPY src/inner-link /x", {"x": "a.txt"}),
        ("COPY link/../a.txt /", {"a.txt": "a.txt"}),
        ("COPY /a.txt /", {"a.txt": "a.txt"}),
        ('COPY ["dir/with space/f", "/g h"]', {"g h": "dir/with space/f"}),
        ("WORKDIR /w\nCOPY a.txt .", {"w": "/", "w/a.txt": "a.txt"}),
        ("WORKDIR w\nWORKDIR v\nCOPY a.txt x", {"w": "/", "w/v": "/", "w/v/x": "a.txt"}),
        ("ENV d=/e f=a\nCOPY ${f}.txt $d/", {"e": "/", "e/a.txt": "a.txt"}),
        ("COPY --exclude=*.py --exclude=**/*.md src /d/", {"d": "/", "d/sub": "/", "d/inner-link": "-> ../a.txt"}),
        ("COPY --parents src/sub/s.md /d/", {"d": "/", "d/src": "/", "d/src/sub": "/", "d/src/sub/s.md": "src/sub/s.md"}),
        ("COPY --parents src/./sub/s.md /d/", {"d": "/", "d/sub": "/", "d/sub/s.md": "src/sub/s.md"}),
        ("COPY --parents **/*.md /", {"src": "/", "src/sub": "/", "src/sub/s.md": "src/sub/s.md"}),
        ("COPY <<EOF /e\n$PATH \\$x '$y'\nEOF", {"e": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin $x ''\n"}),
        ("COPY <<E /e\n\\\n\\\\ \\n \\$PATH\nE", {"e": "\n\\ n $PATH\n"}),
        ("COPY a.txt lock* /d/", {"d": "/", "d/a.txt": "a.txt"}),
        ("WORKDIR /w\nCOPY a.txt b.txt /w", {"w": "/", "w/a.txt": "a.txt", "w/b.txt": "b.txt"}),
        ("COPY none* /d/\nCOPY none?/*.txt [xyz] /d/\nADD none*.tar /d/\nCOPY --parents none/**/x /d/", {}),
        ("COPY <<'one' <<two /e/\n$PATH\none\n2\ntwo", {"e": "/", "e/one": "$PATH\n", "e/two": "2\n"}),
        ("COPY a.txt /x\nCOPY b.txt /x", {"x": "b.txt"}),
        ("COPY src/sub /d\nCOPY src/sub/s.md /d", {"d": "/", "d/s.md": "src/sub/s.md"}),
    ],
)
def test_what_copy_puts_where(make, lines, expected):
    assert files(make(f"FROM scratch\n{lines}")) == expected


def test_a_stage_gives_files_to_another(make):
    image = make("FROM scratch AS one\nCOPY src /s\nFROM scratch\nCOPY --from=one /s/x.py /x\nCOPY --from=0 s/sub /t/")
    assert files(image) == {"x": "src/x.py", "t": "/", "t/s.md": "src/sub/s.md"}


def test_a_directory_that_is_a_link_in_the_image_stays_one(make, context):
    (context / "usr" / "bin").mkdir(parents=True)
    (context / "usr" / "old").write_text("old")
    (context / "top").mkdir()
    (context / "top" / "bin").symlink_to("usr/bin")
    base = "FROM scratch\nCOPY usr /usr\nCOPY top /\n"
    assert files(make(base + "COPY a.txt /bin/x"))["usr/bin/x"] == "a.txt"
    assert files(make(base + "COPY --link a.txt /bin/x"))["bin/x"] == "a.txt"
    with pytest.raises(DockerfileError, match=r"there and is no directory|no directory already"):
        make(base + "COPY dir /usr/old")


def test_modes_are_kept_or_told(make):
    image = make("FROM scratch\nCOPY src /a\nCOPY --chmod=0750 src /b\nCOPY --chmod=u=rwX,go=rX src /c\nCOPY --chmod=+t,a-w src/x.py /d")
    assert [stat.S_IMODE(status(image, path).st_mode) for path in ("a/x.py", "b/x.py", "b/sub", "c/sub", "c/sub/s.md", "d")] == [
        0o755, 0o750, 0o750, 0o755, 0o644, 0o1555,
    ]  # fmt: skip


@OWNER
def test_what_is_in_a_directory_is_copied_and_not_the_directory(make, context):
    (context / "src").chmod(0o700)
    (context / "src" / "sub").chmod(0o711)
    text = "FROM scratch AS a\nCOPY --chown=7:8 src /a\nCOPY --parents src/sub /p/\nFROM a\nCOPY --from=a --chmod=0600 /a /b\nCOPY --from=a --chown=9 /a /c/\n"
    image = make(text)
    found = {path: status(image, path) for path in ("a", "a/sub", "p/src", "p/src/sub", "b", "b/sub", "c")}
    assert {path: (stat.S_IMODE(one.st_mode), one.st_uid, one.st_gid) for path, one in found.items()} == {
        "a": (0o755, 7, 8), "a/sub": (0o711, 7, 8), "p/src": (0o700, 0, 0), "p/src/sub": (0o711, 0, 0),
        "b": (0o755, 0, 0), "b/sub": (0o600, 7, 8), "c": (0o755, 9, 9),
    }  # fmt: skip


def test_files_that_are_one_stay_one(make, context):
    for path in ("src/hard", "src/sub/hard"):
        os.link(context / "src" / "x.py", context / path)
    image = make("FROM scratch AS a\nCOPY src /a\nFROM scratch\nCOPY --from=a /a /b\nCOPY --from=a /a/hard /a/sub/hard /c/\nCOPY --from=a /a/hard /alone\n")
    inodes = [[status(image, path).st_ino for path in paths] for paths in (("b/x.py", "b/hard", "b/sub/hard"), ("c/hard",), ("alone",))]
    assert [len(set(found)) for found in inodes] == [1, 1, 1]
    assert files(image)["b/sub/hard"] == files(image)["alone"] == "src/x.py"
    os.unlink(context / "src" / "hard")
    (context / "src" / "hard").write_bytes((context / "src" / "x.py").read_bytes())
    (context / "src" / "hard").chmod(0o755)
    image = make("FROM scratch\nCOPY src /a")  # the same names and contents, and another layer
    assert status(image, "a/x.py").st_ino == status(image, "a/sub/hard").st_ino != status(image, "a/hard").st_ino


@OWNER
def test_owners_are_roots_or_those_that_were_told(make, context):
    (context / "passwd").write_text("root:x:0:0::/:\napp:x:7:8::/:\n1000:x:0:0::/:\n")
    (context / "group").write_text("staff:x:50:\n")
    text = "FROM scratch AS base\nCOPY passwd group /etc/\nCOPY --chown=app a.txt /1\nCOPY --chown=app:staff a.txt /new/2\nCOPY --chown=1000 a.txt /3\n"
    text += "COPY --chown=:staff a.txt /7\nCOPY --chown=:51 a.txt /8\nCOPY --chown=app: a.txt /9\n"
    image = make(f"{text}COPY --chown=3:4 src /4\nUSER app\nWORKDIR /home\nFROM base\nCOPY --from=base /1 /5\nCOPY --from=base --chown=root /1 /6")
    owners = {path: (status(image, path).st_uid, status(image, path).st_gid) for path in ("1", "new", "new/2", "3", "4/sub", "home", "5", "6", "7", "8", "9", "etc/group")}
    assert owners == {"1": (7, 8), "new": (7, 50), "new/2": (7, 50), "3": (1000, 1000), "4/sub": (3, 4), "home": (7, 8), "5": (7, 8), "6": (0, 0),
                      "7": (0, 50), "8": (0, 51), "9": (7, 8), "etc/group": (0, 0)}  # fmt: skip


def test_what_leads_to_a_file_keeps_its_mode(make, context):
    (context / "tmp").mkdir(mode=0o777)
    (context / "tmp").chmod(0o1777)
    image = make("FROM scratch\nCOPY --parents tmp /\nCOPY a.txt /tmp/x\nCOPY --link b.txt /tmp/y")
    assert stat.S_IMODE(status(image, "tmp").st_mode) == 0o1777


def test_add_of_an_archive_makes_a_destination_that_all_may_enter(make, context):
    with tarfile.open(context / "t.tar", "w") as archive:
        archive.add(context / "src", "inside")
    with tarfile.open(context / "own.tar", "w") as archive:
        top = tarfile.TarInfo("./")
        top.type, top.mode = tarfile.DIRTYPE, 0o711
        archive.addfile(top)
    image = make("FROM scratch\nADD t.tar /new/\nADD own.tar /own/")
    assert [stat.S_IMODE(status(image, path).st_mode) for path in ("new", "own")] == [0o755, 0o711]


def test_a_trigger_may_take_from_a_stage_that_no_line_needs(make):
    text = (
        "FROM scratch AS below\nCOPY a.txt /o\nFROM below AS more\nCOPY b.txt /b\n"
        "FROM scratch AS base\nONBUILD COPY --from=more / /from/\nFROM base AS one\nFROM base AS two\nFROM scratch\n"
        "COPY --from=one / /1/\nCOPY --from=two / /2/\n"
    )
    found = files(make(text))
    assert {path: found[path] for path in ("1/from/o", "1/from/b", "2/from/o")} == {"1/from/o": "a.txt", "1/from/b": "b.txt", "2/from/o": "a.txt"}


def test_what_fails_in_a_stage_that_a_trigger_takes_from_is_told(make):
    with pytest.raises(DockerfileError, match=r"no such file or directory in the context") as caught:
        make("FROM scratch AS more\nCOPY none /o\nFROM scratch AS base\nONBUILD COPY --from=more / /from/\nFROM base\n")
    assert "none" in str(caught.value)


@pytest.mark.parametrize(("name", "mode"), [("t.tar", "w"), ("t.tgz", "w:gz"), ("t.xz", "w:xz"), ("t.bz2", "w:bz2")])
def test_add_unpacks_archives(make, context, name, mode):
    with tarfile.open(context / name, mode) as archive:
        archive.add(context / "src", "inside")
    image = make(f"FROM scratch\nADD {name} /d/\nADD a.txt /d/")
    assert files(image)["d/inside/sub/s.md"] == "src/sub/s.md"
    assert files(image)["d/a.txt"] == "a.txt"
    assert list(files(make(f"FROM scratch\nADD --unpack=false {name} /d/"))) == ["d", f"d/{name}"]


@pytest.mark.parametrize("member", ["../evil", "/../../evil"])
def test_an_archive_that_leads_out_is_refused_or_stays_inside(make, context, tmp_path, member):
    with tarfile.open(context / "t.tar", "w") as archive:
        info = tarfile.TarInfo(member)
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    try:
        found = files(make("FROM scratch\nADD t.tar /d/e/"))
    except DockerfileError:
        found = {}
    assert not [path for path in tmp_path.rglob("evil") if "layers" not in path.parts]
    assert not [path for path in found if path.endswith("evil") and not path.startswith("d/e/")]


def test_dockerignore_leaves_files_out(make, context):
    (context / ".dockerignore").write_text("*.env\nsrc/sub\n.dockerignore\n")
    assert not {"secret.env", "src/sub", "src/sub/s.md", ".dockerignore"} & files(make("FROM scratch\nCOPY . /")).keys()
    with pytest.raises(DockerfileError, match="dockerignore leaves it out"):
        make("FROM scratch\nCOPY secret.env /")
    assert files(make("FROM scratch\nCOPY *.env /")) == {}


def test_a_link_that_leads_nowhere_is_not_passed_over(make, context):
    (context / "l_none").symlink_to("nowhere")
    for line in ("COPY l_none /", "COPY l_* /d/", "COPY a.txt l_none* /d/"):
        with pytest.raises(DockerfileError, match=r"l_none.* is a link to 'nowhere'|'l_none': no such file"):
            make(f"FROM scratch\n{line}")
    assert files(make("FROM scratch\nCOPY --link . /d/"))["d/l_none"] == "-> nowhere"
    (context / ".dockerignore").write_text("l_*")
    assert list(files(make("FROM scratch\nCOPY a.txt l_* /d/"))) == ["d", "d/a.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all")
def test_what_may_not_be_read_is_named_as_a_whole(make, context):
    for path in ("src/x.py", "src/sub"):
        (context / path).chmod(0)
        with pytest.raises(DockerfileError, match=rf"'{path}' cannot be read \(Permission denied\); .*\.dockerignore"):
            make("FROM scratch\nCOPY . /")
        (context / ".dockerignore").write_text("src/x.py\nsrc/sub")
        assert "a.txt" in files(make("FROM scratch\nCOPY . /"))
        (context / ".dockerignore").unlink()
        (context / path).chmod(0o755)


def test_an_exception_brings_its_directory_back(make, context):
    (context / ".dockerignore").write_text("*\n!src/sub/s.md\n")
    assert files(make("FROM scratch\nCOPY . /")) == {"src": "/", "src/sub": "/", "src/sub/s.md": "src/sub/s.md"}


def test_patterns_beside_the_dockerfile_count_instead(context, store):
    (context / "Dockerfile").write_text("FROM scratch\nCOPY . /")
    (context / "Dockerfile.dockerignore").write_text("src\nDockerfile*\n")
    (context / ".dockerignore").write_text("*")
    assert "a.txt" in files(build(context, dockerfile="Dockerfile", store=store))


@pytest.mark.parametrize(
    ("line", "column", "what"),
    [
        ("COPY missing /", 6, "no such file"),
        ("COPY \\\\*.nothing /", 6, "no such file"),
        ("COPY --from=1 a.txt /", 15, "no stage '1'"),
        ("COPY --from=last a.txt /\nFROM scratch AS last\nFROM 0", 18, "no stage 'last'"),
        ("COPY ../x /", 6, "leads out"),
        ("COPY src/../../x /", 6, "leads out"),
        ("COPY a.txt b.txt /x", 18, "needs a directory"),
        ("COPY --chown=nobody-here a.txt /", 32, "no user"),
        ("COPY --chown=70000 a.txt /", 26, "no id"),
        ("COPY --chown=: a.txt /", 22, ":GROUP"),
        ("COPY --chmod=9 a.txt /", 22, "octal"),
        ("COPY a.txt /x/\nCOPY b.txt /x/a.txt/", 12, "no directory"),
        ("ADD https://example.com/x /", 5, "no network"),
        ("COPY --exclude=[ a.txt /", 24, "exclude"),
        ("ADD --unpack=true a.txt /", 19, "no archive"),
        ("COPY ${x:?y} /", 6, "y"),
        ("ENV a=${b", 7, "without"),
        ("EXPOSE 80:80", 8, "no port"),
        ("STOPSIGNAL SIGNONE", 12, "no signal"),
        ("USER a b", 6, "USER:GROUP"),
        ("WORKDIR $none", 9, "empty"),
    ],
)
def test_what_is_refused_is_pointed_to(make, line, column, what):
    with pytest.raises(DockerfileError, match=what) as caught:
        make(f"FROM scratch\n{line}")
    assert (caught.value.line, caught.value.column) == (1 + len(line.partition("\nFROM")[0].splitlines()), column)


def test_repositories_are_refused_with_a_remedy(make):
    with pytest.raises(UnsupportedError, match="clone it before"):
        make("FROM scratch\nADD https://example.com/x.git /", network="host")


def test_only_what_the_target_needs_is_built(make):
    told = []
    image = make("FROM scratch AS a\nCOPY missing /\nFROM scratch AS b\nCOPY a.txt /\nFROM a AS c", target="b", progress=told.append)
    assert files(image) == {"a.txt": "a.txt"}
    assert {event.stage for event in told} == {"b"}
    with pytest.raises(UsageError, match="no stage 'd'"):
        make("FROM scratch AS a", target="d")


def test_a_stage_that_fails_fails_the_build(make):
    with pytest.raises(DockerfileError, match="no such file") as caught:
        make("FROM scratch AS a\nCOPY missing /\nFROM scratch\nCOPY --from=a / /")
    assert caught.value.line == 2


def test_settings_are_what_the_lines_say(make):
    image = make(
        "FROM scratch AS base\nENV a=1\nCMD old\nFROM base\nARG V=2\nARG W\nARG TARGETOS\nENV a=3 b=$a-$V-${W:-none}-$TARGETOS c='x y'\n"
        'LABEL "l m"=n\nEXPOSE 80 5000-5001/udp 80\nVOLUME /v ["w"]\nUSER 5\nSTOPSIGNAL INT\nSHELL ["/s", "-x"]\nENTRYPOINT run it\n'
        "HEALTHCHECK --timeout=2s CMD ok\nONBUILD COPY a.txt /\nMAINTAINER me",
        build_args={"W": "w"},
        labels={"more": "1"},
    )
    settings = image.settings
    assert settings.env[1:] == ("a=3", "b=1-2-w-linux", "c=x y")
    assert settings.labels == (("l m", "n"), ("more", "1"))
    assert settings.exposed_ports == ("80/tcp", "5000/udp", "5001/udp")
    assert (settings.entrypoint, settings.cmd) == (("/s", "-x", "run it"), None)
    assert (settings.user, settings.stop_signal, settings.on_build) == ("5", "INT", ("COPY a.txt /",))
    assert settings.healthcheck is not None
    assert settings.healthcheck.test == ("CMD-SHELL", "ok")
    assert image.config.author == "me"


def test_triggers_run_in_who_builds_upon_the_image(make):
    make("FROM scratch\nONBUILD COPY a.txt /t/\nONBUILD ENV x=y", tags=["base"])
    image = make("FROM base")
    assert files(image) == {"t": "/", "t/a.txt": "a.txt"}
    assert "x=y" in image.settings.env
    assert image.settings.on_build == ()


def test_an_unchanged_build_is_the_same_image_and_copies_nothing(make, context):
    text = "FROM scratch\nCOPY src /s\nWORKDIR /w\nCOPY a.txt ."
    first = make(text)
    os.utime(context / "a.txt", (1, 1))
    told = []
    again = make(text, progress=told.append)
    assert again.id == first.id
    assert [event.kind for event in told if event.kind in (EventKind.CACHED, EventKind.DONE)] == [EventKind.CACHED] * 3
    (context / "a.txt").write_text("new")
    assert files(make(text))["w/a.txt"] == "new"
    (context / "src" / "x.py").chmod(0o700)
    assert stat.S_IMODE(status(make(text), "s/x.py").st_mode) == 0o700


def test_what_was_loaded_is_no_cache(make, store, tmp_path, context):
    text = "FROM scratch\nCOPY a.txt /"
    make(text, tags=["x"])
    save(["x"], tmp_path / "x.tar", store=store)
    other, told = Store(tmp_path / "other"), []
    load(tmp_path / "x.tar", store=other)
    build(context, dockerfile=text.encode(), store=other, progress=told.append)
    assert EventKind.CACHED not in {event.kind for event in told}


def test_with_an_epoch_the_same_input_gives_the_same_image(context, tmp_path):
    def digest(number: int):
        os.utime(context / "a.txt", (2_000_000_000 + number,) * 2)
        image = build(
            context,
            dockerfile=b"FROM scratch\nCOPY a.txt src /d/\nWORKDIR /w\nCMD x",
            build_args={"SOURCE_DATE_EPOCH": "1700000000"},
            store=Store(tmp_path / f"store{number}"),
            no_cache=True,
        )
        assert image.config.created == "2023-11-14T22:13:20Z"
        return image.manifest

    assert digest(1) == digest(2)


def test_build_arguments_that_nobody_takes_are_told(make):
    told = []
    make("FROM scratch\nARG used\nCOPY a.txt /", build_args={"used": "1", "unused": "2", "HTTP_PROXY": "x", "BUILDKIT_INLINE_CACHE": "1"}, progress=told.append)
    assert [event.text for event in told if event.kind is EventKind.WARNING] == ["build argument unused is not used: no ARG names it"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"tags": ["UPPER"]}, "lower case"),
        ({"tags": ["x@sha256:" + "0" * 64]}, "digest"),
        ({"platform": "x"}, "platform"),
        ({"build_args": {"SOURCE_DATE_EPOCH": "soon"}}, "SOURCE_DATE_EPOCH"),
        ({"build_args": {"a": 1}}, "build_args"),
        ({"contexts": {"c": "/nowhere"}}, "no directory"),
    ],
)
def test_a_wrong_call_is_refused_at_once(make, options, what):
    with pytest.raises(UsageError, match=what):
        make("FROM scratch\nCOPY a.txt /", **options)


def test_another_context_gives_files_by_its_name(make, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "o").write_text("o")
    assert files(make("FROM scratch\nCOPY --from=more o /", contexts={"more": tmp_path / "other"})) == {"o": "o"}


def test_an_image_takes_the_place_of_another_and_of_a_stage(make):
    make("FROM scratch\nCOPY a.txt /given", tags=["given"])
    text = "FROM nobody/has AS st\nCOPY missing /\nFROM Library AS x\nCOPY --from=st given /2\nCOPY --from=more given /3\n"
    image = make(text, contexts=dict.fromkeys(("st", "library", "more"), "docker-image://given"))
    assert files(image) == {"given": "a.txt", "2": "a.txt", "3": "a.txt"}


def test_a_directory_is_no_base(make, context):
    with pytest.raises(DockerfileError, match="write FROM scratch, and COPY --from=other"):
        make("FROM other", contexts={"other": context})


def test_a_dockerfile_in_lower_case_is_read_when_there_is_no_other(context, store):
    (context / "dockerfile").write_text("FROM scratch\nCOPY a.txt /low")
    assert files(build(context, store=store)) == {"low": "a.txt"}
    (context / "Dockerfile").write_text("FROM scratch\nCOPY a.txt /high")
    assert files(build(context, store=store)) == {"high": "a.txt"}


def test_a_context_that_is_nowhere_is_named(tmp_path, store):
    with pytest.raises(UsageError, match=r"context: .*/none' is no directory"):
        build(tmp_path / "none", store=store)


def test_a_build_that_fails_waits_for_no_download(make, monkeypatch):
    def endless(name: str, *, progress, **_: object) -> None:
        while True:
            progress(None)

    monkeypatch.setattr("sandbox.image.pull", endless)
    with pytest.raises(DockerfileError, match="no such file"):
        make("FROM nobody/has AS far\nFROM scratch AS near\nCOPY missing /\nFROM scratch\nCOPY --from=far / /\nCOPY --from=near / /\n")
