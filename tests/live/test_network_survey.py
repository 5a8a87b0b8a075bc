"""What this host offers to networks, and how ``sandbox doctor`` says it."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from sandbox import features
from sandbox.cli.doctor import networks
from sandbox.cli.doctor.finding import State
from sandbox.errors import SetupError, UnsupportedError
from sandbox.net import Offer
from tests.support import needs

pytestmark = [needs("userns"), pytest.mark.unprivileged]
NO_PROGRAM = UnsupportedError("slirp4netns is not in PATH", feature="slirp4netns", remedy="apt install slirp4netns")


@pytest.mark.usefixtures("no_leftovers")
def test_what_the_kernel_has_is_tried() -> None:
    offer = features.networks()
    assert offer.obstacle is None
    assert offer.kinds >= {"bridge", "veth", "nf_tables", "tbf"}
    assert (offer.outlet is None) == (offer.outlet_obstacle is not None)


def test_a_kind_that_the_kernel_has_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox._networks.survey.LINKS", ("bridge", "nosuchlink"))
    monkeypatch.setattr("sandbox._networks.survey.QUEUES", ("tbf", "nosuchqueue"))
    assert {kind for kind in features.networks().kinds if kind not in {"nf_tables", "owner"}} == {"bridge", "tbf"}


def test_what_keeps_networks_from_being_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Any:
        raise SetupError("clone", errno.ENOSPC, step="clone", hint="raise the sysctl")

    monkeypatch.setattr("sandbox._networks.survey.Switch", refuse)
    first, *others = networks.findings()
    assert (first.state, first.remedy) == (State.MISSING, "raise the sysctl")
    assert [other.what for other in others] == ["slirp4netns", "the host forwards (ip_forward)", "the host forwards IPv6"]


@pytest.mark.parametrize(("privileged", "state"), [(True, State.NOTE), (False, State.MISSING)])
def test_slirp4netns_is_an_ordinary_users_to_miss(monkeypatch: pytest.MonkeyPatch, privileged: bool, state: State) -> None:
    monkeypatch.setattr(features, "networks", lambda: Offer(frozenset({"bridge", "veth"}), None, None, NO_PROGRAM))
    with features.pretend(privileged=privileged):
        found = {finding.what: finding for finding in networks.findings()}
    assert (found["slirp4netns"].state, found["slirp4netns"].remedy) == (state, "apt install slirp4netns")
    assert found["bridges, veth"].state is State.OK
    assert (found["nf_tables"].state, found["nf_tables"].remedy) == (State.MISSING, "as root: modprobe nf_tables")
    assert found["netem"].state is State.NOTE
