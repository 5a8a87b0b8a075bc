"""Capabilities: names, masks, and the set that containers start from."""

from __future__ import annotations

import pytest

from sandbox.errors import UsageError
from sandbox.sec.capabilities import ALL, DEFAULT, NAMES, capability_mask, capability_names


def test_names_stand_at_their_numbers():
    # <linux/capability.h>
    for name, number in (("CHOWN", 0), ("NET_ADMIN", 12), ("SYS_ADMIN", 21), ("SYSLOG", 34), ("AUDIT_READ", 37), ("CHECKPOINT_RESTORE", 40)):
        assert NAMES.index(f"CAP_{name}") == number
    assert ALL == (1 << 41) - 1


@pytest.mark.parametrize("name", ["CAP_SYS_ADMIN", "SYS_ADMIN", "sys_admin", "cap_sys_admin"])
def test_names_are_taken_in_all_usual_spellings(name: str):
    assert capability_mask([name]) == 1 << 21


def test_masks_and_names_round_trip():
    assert capability_mask(capability_names(DEFAULT)) == DEFAULT
    assert capability_mask(["ALL"]) == capability_mask(NAMES) == ALL
    assert capability_names(0) == ()


def test_no_names_mean_no_capabilities():
    assert capability_mask([]) == 0


def test_the_default_is_dockers_less_three():
    docker = "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE"
    assert capability_mask(docker.split()) & ~capability_mask(["MKNOD", "NET_RAW", "AUDIT_WRITE"]) == DEFAULT


@pytest.mark.parametrize("names", [["CAP_NONSENSE"], [""], [21], "CAP_CHOWN"])
def test_what_is_no_capability_is_refused(names: list[str]):
    with pytest.raises(UsageError, match="capabilities"):
        capability_mask(names)


def test_unknown_bits_are_refused():
    with pytest.raises(UsageError, match="bits"):
        capability_names(1 << 41)
