from collections.abc import Callable
from typing import Any

import pytest

from gda.config.check import check

Compose = Callable[..., dict[str, Any]]
Faults = Callable[..., dict[str, str]]


def put(config: dict[str, Any], path: str, value: Any) -> None:
    """Sets a value by its dotted path, as an override would."""
    *parents, last = path.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[last] = value


@pytest.fixture
def changed(tiny: Compose) -> Callable[..., dict[str, Any]]:
    """The tiny config with values changed by dotted path; overrides choose the groups."""

    def make(changes: dict[str, Any] | None = None, *overrides: str) -> dict[str, Any]:
        config = tiny(*overrides)
        for path, value in (changes or {}).items():
            put(config, path, value)
        return config

    return make


@pytest.fixture
def faults(changed: Callable[..., dict[str, Any]]) -> Faults:
    """The faults of such a config, as text by the place that they name."""

    def make(changes: dict[str, Any] | None = None, *overrides: str) -> dict[str, str]:
        found = check(changed(changes, *overrides))
        assert len({fault.where for fault in found}) == len(found), "a place is named twice"
        return {fault.where: str(fault) for fault in found}

    return make
