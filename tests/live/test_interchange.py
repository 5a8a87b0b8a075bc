"""What we write, skopeo, umoci, podman and docker read and run; what they write, we load and run. One case is a cell of docs/reference/interchange.md."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interchange import CASES, Case, Workshop
from tests.support import needs

pytestmark = needs("root", "program:busybox")


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Iterator[Workshop]:
    found = Workshop(tmp_path_factory.mktemp("interchange"))
    yield found
    found.close()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_images_go_to_other_programs_and_come_back(shop: Workshop, case: Case):
    if case.lacks:
        pytest.skip(case.lacks)
    case.carry_out(shop, case.form)
