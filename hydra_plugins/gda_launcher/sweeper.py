"""``hydra/sweeper=gda_grid``: Hydra's own grid sweeper without its trial composition."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore


class GridSweeper(BasicSweeper):
    """Expands a grid. The launcher composes and checks every cell before it runs any."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Leaves the composition to the launcher: twice would double the time before a sweep starts."""


@dataclass
class GridSweeperConf(BasicSweeperConf):
    """Hydra's config of the sweeper."""

    _target_: str = "hydra_plugins.gda_launcher.sweeper.GridSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="gda_grid", node=GridSweeperConf, provider="gda")
