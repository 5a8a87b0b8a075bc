"""Variables, with the modifiers of POSIX's shell, as BuildKit expands them; and patterns of .dockerignore and COPY."""

from __future__ import annotations

import fnmatch
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.builder._positions import Positions
from sandbox.builder.expansion import ExpansionError, expand, expand_words, matches, replace, trim
from sandbox.builder.ignore import _WILD, Patterns, _pieces, compile_glob
from sandbox.errors import UsageError

pytestmark = pytest.mark.unprivileged
NAMES = {"x": "value", "e": "", "p": "foobarbaz", "s": "a b", "path": "/usr/local/bin", "star": "*"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$x", "value"),
        ("${x}y", "valuey"),
        ("$xy", ""),
        ("$x.y", "value.y"),
        (r"\$x", "$x"),
        (r"\${x}", "${x}"),
        ("'$x'", "$x"),
        ('"$x"', "value"),
        (r'"\$x"', "$x"),
        (r'"a\b"', r"a\b"),
        (r"a\b", "ab"),
        (r'"a\"b"', 'a"b'),
        ("''", ""),
        ("a'b c'd", "ab cd"),
        ("$", "$"),
        ("a$ b", "a$ b"),
        ("${x:-d}", "value"),
        ("${e:-d}", "d"),
        ("${e-d}", ""),
        ("${u-d}", "d"),
        ("${u:-d}", "d"),
        ("${x:+a}", "a"),
        ("${e:+a}", ""),
        ("${e+a}", "a"),
        ("${u+a}", ""),
        ("${u:-$x}", "value"),
        ("${u:-${v:-${x}}}", "value"),
        ("${u:-'a}b'}", "a}b"),
        ("${x:?bad}", "value"),
        ("${e?bad}", ""),
        ("${p#foo}", "barbaz"),
        ("${p#*b}", "arbaz"),
        ("${p##*b}", "az"),
        ("${p%baz}", "foobar"),
        ("${p%b*}", "foobar"),
        ("${p%%b*}", "foo"),
        ("${p#zzz}", "foobarbaz"),
        ("${p%?}", "foobarba"),
        ("${path##*/}", "bin"),
        ("${path%/*}", "/usr/local"),
        ("${p/ba/X}", "fooXrbaz"),
        ("${p//ba/X}", "fooXrXz"),
        ("${p//ba?/X}", "fooXX"),
        ("${p/o*r/}", "fbaz"),
        (r"${path//\//-}", "-usr-local-bin"),
        (r"${star/\*/x}", "x"),
        ("${p/zz/X}", "foobarbaz"),
        ("$1", ""),
    ],
)
def test_expansion(text, expected):
    assert expand(text, NAMES) == expected


@pytest.mark.parametrize(
    ("text", "at"),
    [("a${", 1), ("${x", 0), ("${}", 0), ("${x:}", 3), ("${x!y}", 3), ("'a", 0), ('b"a', 1), ("${u:?not there}", 0), ("${u?}", 0), ("${p/a", 0), ("${a:-" * 60, 250)],
)
def test_what_is_malformed_is_refused_with_its_place(text, at):
    with pytest.raises(ExpansionError) as caught:
        expand(text, NAMES)
    assert caught.value.at == at


def test_the_words_of_an_error_are_the_authors():
    with pytest.raises(ExpansionError, match="u: say which value"):
        expand("${u:?say which $x}", NAMES)


def test_another_escape_character():
    assert expand("`$x\\", NAMES, escape="`") == "$x\\"


def test_a_heredoc_keeps_its_quotes_and_no_escapes():
    assert expand("'$x' \"${x}\" \\$x \\n\n", NAMES, raw_quotes=True) == "'value' \"value\" $x n\n"
    assert expand("\\\n\\\\\n", NAMES, raw_quotes=True) == "\n\\\n"  # as of BuildKit's testCopyHeredocSpecialSymbols


@pytest.mark.parametrize(("text", "words"), [("80 443", ["80", "443"]), ("$s c", ["a", "b", "c"]), ('"$s" c', ["a b", "c"]), ("$u", []), ("''", [""])])
def test_what_variables_bring_is_split_unless_quoted(text, words):
    assert expand_words(text, NAMES) == words


@given(st.text(st.characters(exclude_characters="\0")))
def test_single_quotes_keep_everything(text):
    quoted = "'" + text.replace("'", "'\\''") + "'"
    assert expand(quoted, NAMES) == text


@given(st.text(max_size=60))
def test_no_text_crashes_expansion(text):
    for function in (expand, expand_words):
        try:
            function(text, NAMES)
        except ExpansionError as error:
            assert 0 <= error.at <= len(text)


PLAIN = st.text("ab/", max_size=12)


@given(PLAIN, st.text("ab/*?", max_size=6))
def test_patterns_agree_with_fnmatch(value, pattern):
    assert matches(value, pattern) == fnmatch.fnmatchcase(value, pattern)


@given(PLAIN, st.text("ab*?", max_size=5), st.sampled_from(["#", "##", "%", "%%"]))
def test_trimming_takes_the_shortest_or_longest_match(value, pattern, modifier):
    size = range(len(value) + 1)
    taken = [count for count in size if fnmatch.fnmatchcase(value[:count] if modifier[0] == "#" else value[len(value) - count :], pattern)]
    count = 0 if not taken else max(taken) if len(modifier) == 2 else min(taken)
    assert trim(value, pattern, modifier) == (value[count:] if modifier[0] == "#" else value[: len(value) - count])


@given(PLAIN, st.text("ab", min_size=1, max_size=3))
def test_replacing_plain_text_is_str_replace(value, pattern):
    assert replace(value, pattern, "X", all_of_them=True) == value.replace(pattern, "X")
    assert replace(value, pattern, "X", all_of_them=False) == value.replace(pattern, "X", 1)


def test_a_hostile_pattern_takes_no_time():
    begin = time.monotonic()
    assert trim("a" * 2000, "*a" * 30 + "b", "##") == "a" * 2000
    assert replace("a" * 100_000, "a*b", "x", all_of_them=True) == "a" * 100_000  # once to the end, and not from each letter
    assert time.monotonic() - begin < 20  # and not hours
    with pytest.raises(ExpansionError, match="too long") as caught:
        expand(f"x${{a//{'a' * 100}/b}}", {"a": "a" * 100_000})
    assert caught.value.at == 1


@given(PLAIN, st.text("ab*?", max_size=5), st.booleans())
def test_replacing_is_what_expressions_do(value, pattern, all_of_them):
    expression = "".join({"*": ".*", "?": "."}.get(letter, letter) for letter in pattern)
    longest = [re.compile(expression, re.DOTALL).match(value, at) for at in range(len(value) + 1)]
    result, at = "", 0
    while at < len(value):
        found = longest[at]
        if found is None or found.end() == at:
            result, at = result + value[at], at + 1
            continue
        result, at = result + "X", found.end()
        if not all_of_them:
            break
    assert replace(value, pattern, "X", all_of_them=all_of_them) == result + value[at:]


@pytest.mark.parametrize(
    ("patterns", "path", "excluded"),
    [
        ("*/temp*", "a/temporary.txt", True),
        ("*/temp*", "a/b/temporary", False),
        ("*/*/temp*", "a/b/temporary", True),
        ("temp?", "tempa", True),
        ("temp?", "temp", False),
        ("**/*.go", "z.go", True),
        ("**/*.go", "x/y/z.go", True),
        ("*.md\n!README.md", "README.md", False),
        ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", True),
        ("!README.md\n*.md", "README.md", True),
        ("node_modules", "node_modules/a/b", True),
        ("node_modules", "src/node_modules", False),
        ("/abs/./x/", "abs/x", True),
        ("../../x", "x", False),
        (".", "x", False),
        ("# comment\n\n  spaced  ", "spaced", True),
        ("a\n!a/b", "a/b", False),
        ("a\n!a/b", "a/c", True),
        ("a/**", "a/b/c", True),
        ("a/**", "a", False),
        ("a/**/b", "a/b", True),
        ("[a-c]x", "bx", True),
        ("[^a]x", "bx", True),
        ("[!a]x", "bx", False),
        ("a[^x]b", "a/b", False),
        ("a\\*", "a*", True),
        ("a\\*", "ab", False),
        ("a.b", "axb", False),
        ("*", ".git/config", True),
        ("**", "a/b", True),
        ("*\n!src\n!src/**", "src/x", False),
    ],
)
def test_dockerignore(patterns, path, excluded):
    assert Patterns.parse(patterns).excludes(path) is excluded


def test_a_directory_is_skipped_only_when_nothing_in_it_can_come_back():
    assert Patterns.parse("a").can_prune("a")
    assert not Patterns.parse("a\n!a/b").can_prune("a")


@pytest.mark.parametrize("pattern", ["a[", "[", "[]", "a\\", "[a-", "[b-a]", "[]a]", "[a", "!"])
def test_a_malformed_pattern_is_refused(pattern):
    with pytest.raises(UsageError, match="dockerignore"):
        Patterns.parse(pattern)


@given(st.text("ab/*?[]^-\\!.", max_size=8), st.text("ab/.", max_size=8))
def test_no_pattern_crashes(pattern, path):
    try:
        found = compile_glob(pattern)
    except UsageError:
        return
    found.fullmatch(path)


@given(st.lists(st.sampled_from(["*", "**", "**/", "/", "?", "[ab]", "[^a]", "a", "b", "."]), max_size=9).map("".join), st.text("ab/.", max_size=10))
def test_positions_say_what_expressions_say(pattern, path):
    pieces = _pieces(pattern, "x")
    expression = "".join(piece.text or _WILD[piece.kind] for piece in pieces)
    assert Positions.of(pieces).fullmatch(path) is (re.fullmatch(expression, path, re.DOTALL) is not None)


@pytest.mark.parametrize("pattern", ["*a" * 30 + "b", "**/" * 30 + "x", "**a" * 30 + "b", "**/*a" * 30 + "/b", "[a-b]*" * 30 + "c", "**a**a*a*b"])
@pytest.mark.parametrize("path", ["a" * 250, "/".join(["aa"] * 80), "/".join(["a" * 200] * 20)])
def test_a_hostile_glob_takes_no_time(pattern, path):
    assert not compile_glob(pattern).fullmatch(path)  # as an expression, one of these takes longer than there is
    assert not Patterns.parse(f"{pattern}\n!{pattern}").excludes(path)


@pytest.mark.parametrize("text", ["$a$a$a", '"$a$a$a"', "${a}${a}${a}", "${none:-$a$a}$a"])
def test_variables_of_one_text_bring_a_bounded_amount(text: str) -> None:
    half = "x" * (1 << 19)
    assert expand("$a$a", {"a": half}) == half * 2
    with pytest.raises(ExpansionError, match="more than 1048576 characters"):
        expand(text, {"a": half})
    with pytest.raises(ExpansionError, match="more than 1048576 characters"):
        expand_words(text, {"a": half})
