"""Dockerfiles as text: directives, continued lines, heredocs, instructions and their flags; errors point to the place."""

from __future__ import annotations

import pickle
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox.builder import parse
from sandbox.builder._source import read_source, split_words, statements
from sandbox.builder.instructions import Copy, Health, OnBuild, Pairs, Program, Run
from sandbox.errors import DockerfileError

pytestmark = pytest.mark.unprivileged


def steps(text: str):
    return parse("FROM scratch\n" + text).stages[0].steps


def texts(text: str) -> list[tuple[str, str]]:
    return [(statement.keyword, statement.text) for statement in statements(read_source(text, "Dockerfile"))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FROM a\n\n\n  run b  \n", [("FROM", "a"), ("RUN", "b")]),
        ("RUN a \\\n  b", [("RUN", "a   b")]),
        ("RUN a \\  \n# gone\n\n  # gone too\n b", [("RUN", "a  b")]),
        ("RUN a \\\\\nRUN b", [("RUN", "a \\\\"), ("RUN", "b")]),
        ("RUN a # stays", [("RUN", "a # stays")]),
        ("# escape=`\nRUN a `\n b \\\nRUN c", [("RUN", "a  b \\"), ("RUN", "c")]),
        ("# comment\n# escape=`\nRUN a `\nRUN b", [("RUN", "a `"), ("RUN", "b")]),  # a directive after a comment is a comment
        ("\ufeff# ESCAPE = `\r\nRUN a `\r\n b\r\n", [("RUN", "a  b")]),
        ("RUN\tx", [("RUN", "x")]),
        ("RUN \\\n x \\\n", [("RUN", "x")]),
        ("\\\n\\\nRUN y", [("RUN", "y")]),
        ("", []),
    ],
)
def test_lines_are_joined_and_comments_left_out(text, expected):
    assert texts(text) == expected


@pytest.mark.parametrize(
    ("line", "body", "content", "expand", "name"),
    [
        ("RUN <<EOF", "a $b\nEOF", "a $b\n", True, "EOF"),
        ("RUN <<'EOF'", "a\nEOF", "a\n", False, "EOF"),
        ('COPY <<"E F" <<X /y', "z", None, None, None),
        ("RUN cat <<-EOF > x", "\t\ta\n\tEOF", "a\n", True, "EOF"),
        ("RUN 3<<EOF cat", "# no comment\n\nEOF", "# no comment\n\n", True, "EOF"),
        ("ADD <<a.txt /x/", "one\\\ntwo\na.txt", "one\\\ntwo\n", True, "a.txt"),
        ("ONBUILD RUN <<EOF", "a\nEOF", "a\n", True, "EOF"),
    ],
)
def test_heredocs_are_read_as_they_stand(line, body, content, expand, name):
    if content is None:
        with pytest.raises(DockerfileError, match="does not end"):
            steps(f"{line}\n{body}\n")
        return
    step, after = steps(f"{line}\n{body}\nENV a=b\n")
    (heredoc,) = step.statement.heredocs
    assert (heredoc.content, heredoc.expand, heredoc.name) == (content, expand, name)
    assert isinstance(after, Pairs)


@pytest.mark.parametrize("line", ["RUN echo $((1<<3))", "RUN a <<< word", 'RUN ["cat", "<<EOF"]', "ENV a=<<EOF", 'RUN echo "<<EOF"'])
def test_what_only_looks_like_a_heredoc_is_none(line):
    (step,) = steps(line)
    assert step.statement.heredocs == ()


def test_several_heredocs_follow_in_order():
    (step,) = steps("COPY <<a <<-b /d/\n1\na\n\t2\n\tb\n")
    assert [heredoc.content for heredoc in step.statement.heredocs] == ["1\n", "2\n"]


def test_forms_of_commands():
    shell, listed, broken, entry, health, none = steps(
        'RUN echo [x]\nRUN ["a", "b c"]\nCMD ["a", b]\nENTRYPOINT []\nHEALTHCHECK --interval=1m30s --start-interval=500ms --retries=3 CMD curl x\nHEALTHCHECK NONE'
    )
    assert isinstance(shell, Run)
    assert shell.command.is_shell
    assert shell.command.words == ("echo [x]",)
    assert isinstance(listed, Run)
    assert not listed.command.is_shell
    assert listed.command.words == ("a", "b c")
    assert isinstance(broken, Program)
    assert broken.command.is_shell
    assert isinstance(entry, Program)
    assert entry.command.words == ()
    assert isinstance(health, Health)
    assert health.times == {"interval": 90.0, "start-interval": 0.5}
    assert health.retries == 3
    assert isinstance(none, Health)
    assert none.command is None


def test_flags_of_copy():
    (copy,) = steps("COPY --from=build --chown=1:2 --chmod=u+x --link --parents=false --exclude=*.md --exclude=**/x a b /c/")
    assert isinstance(copy, Copy)
    assert (copy.from_, copy.chown, copy.chmod, copy.link, copy.parents, copy.exclude) == ("build", "1:2", "u+x", True, False, ("*.md", "**/x"))
    assert ([word.text for word in copy.sources], copy.target.text) == (["a", "b"], "/c/")


def test_env_has_a_new_and_an_old_form():
    new, old = steps("ENV a=1 b='x y' c=d\\ e\nENV name  some text = more")
    assert isinstance(new, Pairs)
    assert [(name.text, value.text) for name, value in new.pairs if value] == [("a", "1"), ("b", "'x y'"), ("c", "d\\ e")]
    assert isinstance(old, Pairs)
    assert [(name.text, value.text) for name, value in old.pairs if value] == [("name", "some text = more")]


def test_a_trigger_reads_to_itself():
    (step,) = steps("ONBUILD RUN <<-EOF cat\n\ta\n\tEOF\n")
    assert isinstance(step, OnBuild)
    (again,) = statements(read_source(step.trigger, "x"))
    assert again.heredocs[0].content == "a\n"


@pytest.mark.parametrize(
    ("text", "line", "column", "what"),
    [
        ("FORM x", 1, 1, "did you mean FROM"),
        ("RUN x", 1, 1, "before FROM"),
        ("# nothing", 1, 1, "no FROM"),
        ("FROM a b", 1, 6, "IMAGE AS NAME"),
        ("FROM a AS 1x", 1, 11, "name of a stage"),
        ("FROM a\nRUN", 2, 1, "without arguments"),
        ("FROM a\nCOPY \\\n # c\n   --frm=x \\\n a b", 4, 4, "no flag --frm"),
        ("FROM a\nCOPY a", 2, 6, "one source or more"),
        ("FROM a\nCOPY --from=$x a b", 2, 13, "not expanded"),
        ("FROM a\nCOPY --link=maybe a b", 2, 6, "neither true nor false"),
        ("FROM a\nCOPY --chown=1 --chown=2 a b", 2, 16, "twice"),
        ("FROM a\nENV a=1 b", 2, 9, "NAME=VALUE"),
        ("FROM a\nARG 1a=b", 2, 5, "name of a variable"),
        ("FROM a\nSHELL sh -c", 2, 7, "JSON list"),
        ("FROM a\nHEALTHCHECK --interval=5 CMD x", 2, 13, "not a time"),
        ("FROM a\nHEALTHCHECK x", 2, 13, "NONE"),
        ("FROM a\nHEALTHCHECK CMD \t", 2, 13, "NONE"),
        ('FROM a\nHEALTHCHECK CMD\t["x", 1]', 2, 17, "strings"),
        ('FROM a\nRUN --network=none ["x", null]', 2, 20, "strings"),
        ('FROM a\nCOPY ["x", ["y"]]', 2, 6, "strings"),
        ("FROM a\nONBUILD FROM b", 2, 9, "ONBUILD takes"),
        ("FROM a\nRUN --network=lan x", 2, 5, "default, none and host"),
        ("FROM a\nRUN --security=insecure x", 2, 5, "sandbox"),
        ("FROM a\nRUN <<EOF\nx", 2, 5, "does not end"),
        ("# escape=x\nFROM a", 1, 9, "escape character"),
        ("# escape=`\n# escape=`\nFROM a", 2, 1, "twice"),
        ("# syntax=example.com/other\nFROM a", 1, 1, "only docker/dockerfile"),
        ("# check=no\nFROM a", 1, 1, "skip="),
        ("FROM a\nRUN a\0b", 2, 6, "NUL"),
    ],
)
def test_errors_point_to_the_place(text, line, column, what):
    with pytest.raises(DockerfileError, match=what) as caught:
        parse(text, "dir/Dockerfile")
    error = caught.value
    assert (error.file, error.line, error.column) == ("dir/Dockerfile", line, column)
    shown = str(error).splitlines()
    assert shown[0].startswith(f"dir/Dockerfile:{line}:{column}: ")
    if text.split("\n")[line - 1]:
        assert shown[2].index("^") - shown[1].index("|") - 2 == column - 1
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_bytes_that_are_no_text_are_refused_with_their_line():
    with pytest.raises(DockerfileError, match="not UTF-8") as caught:
        parse(b"FROM a\nRUN \xff")
    assert caught.value.line == 2


@given(st.text(max_size=200))
@example("FROM a\nRUN <<a\\")
@example("FROM a\nCOPY '")
@example("FROM a\nENV \\")
@example("\\\n")
def test_no_text_crashes_the_parser(text):
    try:
        parse(text)
    except DockerfileError as error:
        assert error.line >= 1
        assert error.column >= 1


ALPHABET = st.sampled_from(["FROM a\n", "RUN ", "COPY ", "ENV ", "ONBUILD ", "<<E", "E\n", "\\\n", "\n", "# x\n", "--link ", "[", '"', "'", "$", "a=b", " ", "\t"])


@given(st.lists(ALPHABET, max_size=30).map("".join))
def test_no_shape_crashes_the_parser(text):
    try:
        parse("FROM a\n" + text)
    except DockerfileError as error:
        assert error.line >= 1


WORDS = st.lists(st.text(st.characters(exclude_characters="\0\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", exclude_categories=("Cs",)), min_size=1), min_size=1, max_size=5)


@given(WORDS)
def test_quoted_words_come_back_from_splitting(words):
    escaped = ["'" + word.replace("'", "'\\''") + "'" for word in words]
    found = split_words("  ".join(escaped), "\\")
    assert [word.text for word in found] == escaped


@given(st.lists(st.from_regex(r"[a-z]{1,8}( [a-z]{1,5})?", fullmatch=True), min_size=1, max_size=6), st.data())
def test_where_lines_are_continued_changes_no_statement(words, data):
    breaks = [data.draw(st.sampled_from([" ", " \\\n", " \\\n# c\n", " \\\n\n"])) for _ in words]
    text = "RUN " + "".join(word + gap for word, gap in zip(words, breaks, strict=True)).rstrip(" \\\n#c") + "z"
    (statement,) = statements(read_source(text, "x"))
    assert statement.text.split() == text.replace("\\\n# c\n", "").replace("\\\n\n", "").replace("\\\n", "").split()[1:]


def test_a_check_follows_any_blanks():
    (step,) = parse("FROM a\nHEALTHCHECK --start-interval=2s \\\n\tCMD\t \\\n ok  then").stages[0].steps
    assert isinstance(step, Health)
    assert step.command is not None
    assert step.command.words == ("ok  then",)
    assert step.times == {"start-interval": 2.0}


@pytest.mark.parametrize("place", ["docker/dockerfile:1", "docker.io/docker/dockerfile-upstream:master", "mirror.corp:5000/hub/docker/dockerfile:1.7", "dockerfile"])
def test_the_reader_that_we_are_may_be_named_by_any_mirror(place):
    assert parse(f"# syntax={place}\nFROM a").stages[0].base.image.text == "a"


def test_a_long_comment_is_soon_known_for_none():
    begin = time.monotonic()
    assert parse("# a=b" + " " * 300_000 + "c\nFROM x").source.directives == {}
    assert time.monotonic() - begin < 5
