from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox._plan import IdMap
from sandbox._sys.subid import Owned
from sandbox.errors import UnsupportedError, UsageError
from sandbox.ns import user
from sandbox.ns.user import COUNT, END, FIRST, IdRanges

spans = st.lists(st.tuples(st.integers(1, 1 << 31), st.integers(1, 1 << 20)), max_size=20)


def test_ranges_lie_where_systemd_puts_containers_and_do_not_touch():
    ranges = IdRanges(start=0)
    bases = [ranges.take().base for _ in range(1000)]
    assert bases[0] == FIRST == 524288
    assert len(set(bases)) == 1000
    assert all((base - FIRST) % COUNT == 0 and base + COUNT <= END for base in bases)


def test_the_last_range_is_followed_by_the_first():
    ranges = IdRanges(start=(END - FIRST) // COUNT - 1)
    assert [ranges.take().base for _ in range(2)] == [END - COUNT, FIRST]


def test_a_range_is_given_out_again_only_after_its_release():
    ranges = IdRanges(start=5, visible=[[IdMap(FIRST, FIRST, 2 * COUNT)]])
    first, second = ranges.take(), ranges.take()
    assert {first.base, second.base} == {FIRST, FIRST + COUNT}
    with pytest.raises(UnsupportedError, match="no range"):
        ranges.take()
    first.release()
    first.release()
    assert ranges.take().base == first.base


def test_ids_that_our_own_user_namespace_lacks_are_not_handed_on():
    with pytest.raises(UnsupportedError, match="outer container"):
        IdRanges(start=0, visible=[[IdMap(0, 100000, 65536)]]).take()
    whole, half = [IdMap(0, 0, 4294967295)], [IdMap(0, 0, FIRST + COUNT)]
    assert IdRanges(start=7, visible=[whole, half]).take().base == FIRST


def test_subordinate_ids_of_users_are_left_to_them():
    ranges = IdRanges(start=0, reserved=[(FIRST - 10, 20), (FIRST + COUNT, 1)])
    assert ranges.take().base == FIRST + 2 * COUNT


@given(spans, st.integers(0, 1 << 40))
def test_no_range_overlaps_a_reserved_one(reserved, start):
    base = IdRanges(start=start, reserved=reserved).take().base
    assert all(base + COUNT <= first or first + count <= base for first, count in reserved)


def test_threads_never_hold_the_same_range():
    ranges, taken = IdRanges(start=0), []
    barrier = threading.Barrier(8)

    def work():
        barrier.wait()
        taken.extend(ranges.take().base for _ in range(200))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == len(taken) == 1600


def test_a_forked_child_has_ranges_of_its_own():
    ours = user.id_ranges()
    assert user.id_ranges() is ours
    pid = os.fork()
    if pid == 0:
        os._exit(0 if user.id_ranges() is not ours else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# --- maps


def test_a_private_map_has_65536_ids():
    maps = user.private_maps(524288)
    assert maps.uid_map == maps.gid_map == (IdMap(0, 524288, 65536),)
    assert not maps.deny_setgroups
    assert [maps.has_uid(number) for number in (-1, 0, 65535, 65536)] == [False, True, True, False]


@pytest.mark.parametrize("base", [0, -1, 4294967295, 4294967295 - 65536 + 1])
def test_a_private_map_never_has_the_hosts_root_nor_no_id(base):
    with pytest.raises(UsageError):
        user.private_maps(base)
    assert user.private_maps(4294967295 - 65536).uid_map


def test_one_id_needs_setgroups_denied():
    maps = user.single_maps(uid=1000, gid=100)
    assert maps.uid_map == (IdMap(1000, os.geteuid(), 1),)
    assert maps.gid_map == (IdMap(100, os.getegid(), 1),)
    assert maps.deny_setgroups
    assert not maps.helpers


@pytest.mark.parametrize("uid", [-1, 4294967295, 4294967296])
def test_what_is_no_uid_is_refused(uid):
    with pytest.raises(UsageError):
        user.single_maps(uid=uid, gid=0)


def test_subordinate_ids_follow_root():
    maps = user.subordinate_maps(Owned(((100000, 10), (200000, 65536)), ((300000, 65536),)), euid=1000, egid=100)
    assert maps.uid_map == (IdMap(0, 1000, 1), IdMap(1, 100000, 10), IdMap(11, 200000, 65525))
    assert maps.gid_map == (IdMap(0, 100, 1), IdMap(1, 300000, 65535))
    assert maps.helpers
    assert maps.has_gid(65535)


@pytest.mark.parametrize(("owned", "file"), [(Owned((), ()), "subuid"), (Owned(((100000, 1),), ()), "subgid")])
def test_without_ranges_the_file_is_named(owned, file):
    with pytest.raises(UnsupportedError, match=f"/etc/{file}.*usermod"):
        user.subordinate_maps(owned, euid=1000, egid=1000)


@given(spans.filter(bool), spans.filter(bool), st.integers(0, 1 << 31), st.integers(0, 70000))
def test_maps_are_such_as_the_kernel_takes(uids, gids, caller, own):
    maps = user.subordinate_maps(Owned(tuple(uids), tuple(gids)), euid=caller, egid=caller, own=own)
    for lines in (maps.uid_map, maps.gid_map):
        assert len(lines) <= 20
        assert lines[0] == IdMap(own, caller, 1)
        outside = sorted((line.outside, line.outside + line.count) for line in lines)
        following = 0
        for line in lines[1:]:  # from 0 on without a hole, but for the caller's own
            following += following == own
            assert line.inside == following
            following += line.count
            assert following <= COUNT
            assert not line.inside <= own < following
        assert all(end <= start for (_, end), (start, _) in zip(outside, outside[1:], strict=False))


def test_the_callers_own_id_keeps_its_place_among_the_others():
    maps = user.subordinate_maps(Owned(((100000, 65536),), ((300000, 65536),)), euid=1000, egid=100, own=1000)
    assert maps.uid_map == (IdMap(1000, 1000, 1), IdMap(0, 100000, 1000), IdMap(1001, 101000, 64535))
