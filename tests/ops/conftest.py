"""Every instruction set of this CPU, and both ways of storing, for the tests that ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hpcrl import _kernels


@pytest.fixture(params=_kernels.supported_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _kernels.isa()
    _kernels.set_isa(request.param)
    yield request.param
    _kernels.set_isa(before)


@pytest.fixture(params=["stored", "nontemporal"])
def stores(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _kernels.nontemporal_bytes()
    _kernels.set_nontemporal_bytes(0 if request.param == "nontemporal" else 2**62)
    yield request.param
    _kernels.set_nontemporal_bytes(before)
