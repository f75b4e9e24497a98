"""``hydra/sweeper=gda_grid``: Hydra's own grid sweeper without its trial composition."""

from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser


class GridSweeper(BasicSweeper):
    """Expands a grid and hands it to the launcher.

    Hydra's own composes every cell once more, to try, and writes a file before anything is checked. The
    launcher composes and checks all cells before it runs any, and writes down what it intends.
    """

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Launches the product of the sweep's parameters and the command line, which wins.

        Args:
            arguments: Overrides of the command line.
        """
        assert self.hydra_context is not None
        assert self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        results, first = [], 0
        for batch in self.split_arguments(overrides, self.max_batch_size):
            results.append(self.launcher.launch(batch, initial_job_idx=first))
            first += len(batch)
        return results


@dataclass
class GridSweeperConf(BasicSweeperConf):
    """Hydra's config of the sweeper."""

    _target_: str = "hydra_plugins.gda_launcher.sweeper.GridSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="gda_grid", node=GridSweeperConf, provider="gda")
