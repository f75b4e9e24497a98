from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Compose = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder shared by the tests of a module, so that its teacher is trained once."""
    return tmp_path_factory.mktemp("runs")
