"""The cluster that the tests in this folder share. All of them carry the mark `slurm`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.dev_cluster import DevCluster, NotInstalledError


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def cluster() -> Iterator[DevCluster]:
    """Four nodes of two cores and two GPUs, with accounting; brought up once, tidied after each test."""
    try:
        cluster = DevCluster()
    except NotInstalledError as error:
        pytest.skip(f"{error}; or: make test-slurm")
    yield cluster
    cluster.down()


@pytest.fixture(autouse=True)
def _tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test finds another's jobs, crashed nodes or stopped controller."""
    cluster = request.getfixturevalue("cluster") if "cluster" in request.fixturenames else None
    yield
    if cluster is not None:
        cluster.tidy()
