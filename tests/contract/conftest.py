"""What every module here may rely on."""

from __future__ import annotations

import pytest

from tests.contract.agent_helpers import disregard


@pytest.fixture(scope="module", autouse=True)
def processes_of_this_module_alone() -> None:
    """The same worker may have begun other modules' servers, which live on until it ends."""
    disregard()
