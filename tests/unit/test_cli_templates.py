"""Templates of ``--format``: what Docker's users write, and what is wrong with others."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import UsageError
from sandbox.cli import templates
from sandbox.cli.tables import show

WEB: dict[str, Any] = {
    "Name": "web",
    "State": {"Status": "running", "Running": True, "Pid": 12, "Health": None},
    "Config": {"Labels": {"app": "shop", "a.b": "c"}, "Env": ["A=1", "B=2"], "Cmd": []},
    "NetworkSettings": {
        "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}], "9/udp": []},
        "Networks": {"shop": {"IPAddress": "10.89.0.2"}, "home": {"IPAddress": "10.89.1.2"}},
    },
}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plain", "plain"),
        ("{{.Name}} is {{ .State.Status }}", "web is running"),
        ("{{.State.Running}} {{.State.Health}} {{.State.Pid}}", "true <no value> 12"),
        ("{{.Config.Labels}} {{.Config.Env}}", "map[a.b:c app:shop] [A=1 B=2]"),
        ('{{index .Config.Labels "a.b"}}{{index .Config.Labels "none"}}', "c"),
        ("{{json .Config.Env}} {{len .Config.Env}}", '["A=1","B=2"] 2'),
        ("{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", "10.89.1.2 10.89.0.2 "),
        ("{{range $name, $n := .NetworkSettings.Networks}}{{$name}}={{$n.IPAddress}},{{$.Name}};{{end}}", "home=10.89.1.2,web;shop=10.89.0.2,web;"),
        ('{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}', "8080"),
        ("{{range $p, $c := .NetworkSettings.Ports}}{{$p}}{{range $c}} {{.HostIp}}{{else}} none{{end}};{{end}}", "80/tcp 0.0.0.0 ::;9/udp none;"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        ("{{if .State.Health}}h{{else if .Config.Cmd}}c{{else}}-{{end}}", "-"),
        ('{{if and .State.Running (eq .Name "web" "app")}}both{{end}}{{if not (gt .State.Pid 12)}}!{{end}}', "both!"),
        ("{{with .State.Health}}{{.Status}}{{else}}no check{{end}}{{with .State}}{{.Pid}}{{end}}", "no check12"),
        ('{{.Name | upper | printf "%-5s|"}}{{printf "%q %3d" .Name .State.Pid}}', 'WEB  |"web"  12'),
        ('{{join .Config.Env ";"}}{{println "!"}}{{index (split "a,b" ",") 1}}{{`\\n`}}', "A=1;B=2!\nb\\n"),
        ("{{/* nothing */}}a {{- .Name -}} b", "awebb"),
        ("{{range $i, $e := .Config.Env}}{{$i}}{{$e}}{{end}}", "0A=11B=2"),
    ],
)
def test_templates_say_what_gos_do(text: str, said: str) -> None:
    assert templates.read(text)(WEB) == said


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{{.Nope}}", "no .Nope; there are Name, State"),
        ("{{.Name.First}}", "no .First in 'web'"),
        ("{{", "without its"),
        ("{{if .Name}}", "without its {{end}}"),
        ("{{end}}", "of no block"),
        ("{{nope .Name}}", "'nope' is no function; there are and, eq"),
        ("{{.Name .State}}", "is no function"),
        ("{{}}", "ends too early"),
        ("{{(.Name}}", "not closed"),
        ("{{index .Config.Env 7}}", "index cannot be done with"),
        ("{{lower .Config}}", "lower cannot be done"),
        ("{{range .Name}}{{end}}", "which is one thing"),
        ("{{$x}}", "no variable"),
        ("{{.Name ; .State}}", "makes no sense"),
        ("{{if .Name}}" * 60 + "{{end}}" * 60, "more than 50"),
    ],
)
def test_what_is_wrong_is_said(text: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        templates.read(text)(WEB)
    assert why in str(caught.value)
    assert str(caught.value).startswith("--format: ")


@given(st.text(alphabet='{}.$|()"`- \nabNrangeifendelsewithjson:=,0%s', max_size=60))
def test_nothing_else_is_raised_whatever_is_written(text: str) -> None:
    with contextlib.suppress(UsageError):
        templates.read(text)(WEB)


def test_lists_are_shown_by_templates_with_headings_and_without(capsys: pytest.CaptureFixture[str]) -> None:
    rows, columns = [{"Names": "web", "Status": "Up", "Size": "3"}, {"Names": "database", "Status": "Up", "Size": "4"}], {"NAMES": "Names"}
    show(rows, columns, form="{{.Names}}\\t{{.Size}}")
    show(rows, columns, form="table {{.Names}}\\t{{.Status}}\\t{{lower .Size}}")
    show([], columns, form="table {{.Names}}\\t{{.Size}}")
    said = capsys.readouterr().out.splitlines()
    assert said == ["web\t3", "database\t4", "NAMES      STATUS   SIZE", "web        Up       3", "database   Up       4", "NAMES   SIZE"]
    with pytest.raises(UsageError, match=r"there are Names, Status, Size"):
        show(rows, columns, form="{{.Name}}")


def test_what_strangers_wrote_steers_no_terminal() -> None:
    assert templates.read("{{.Name}}\t{{println .Labels}}")({"Name": "a\x1b[2Jb", "Labels": {"x": "\x9b1m\r"}}) == "a\\x1b[2Jb\tmap[x:\\x9b1m\\r]\n"
