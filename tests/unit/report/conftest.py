"""Studies to report on."""

from pathlib import Path

import pytest
from few_shot_builder import FewShotBuilder, shares
from study_builder import StudyBuilder


@pytest.fixture
def study(tmp_path: Path) -> StudyBuilder:
    return StudyBuilder(tmp_path / "runs")


@pytest.fixture
def few_shot(tmp_path: Path) -> FewShotBuilder:
    return FewShotBuilder(tmp_path / "runs")


@pytest.fixture
def make_shares():
    return shares
