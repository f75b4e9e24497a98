"""``hydra/launcher=gda_local``: the cells of a sweep, here, one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.gda_launcher.compose import composed_cells


class LocalLauncher(Launcher):
    """Checks the whole grid, writes down what it intends, then runs cell after cell."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps what Hydra hands over (see :class:`hydra.plugins.launcher.Launcher`)."""
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs every cell; a failed cell does not stop the others.

        Args:
            job_overrides: The overrides of each cell.
            initial_job_idx: Number of the first cell.

        Raises:
            SystemExit: A cell failed, or the grid has faults, or Ctrl-C was pressed.
        """
        from gda.cluster.grid import run_grid

        cells = composed_cells(self.hydra_context, self.config, job_overrides, initial_job_idx)
        return run_grid(cells, self.task_function)


@dataclass
class LocalLauncherConf:
    """Hydra's config of the launcher."""

    _target_: str = "hydra_plugins.gda_launcher.local.LocalLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="gda_local", node=LocalLauncherConf, provider="gda")
