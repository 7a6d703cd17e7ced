"""The fixture of the engines."""

from __future__ import annotations

import pytest
from support.engines import Engine


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine of `support.engines.on`, ready to run."""
    request.param.use(monkeypatch)
    return request.param
