"""``hydra/launcher=gda_processes``: the cells of a sweep, here, in processes of their own."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.gda_launcher.compose import composed_cells


class ProcessesLauncher(Launcher):
    """Checks the whole grid, freezes it, then makes several runs at a time, or runs of several ranks."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps what Hydra hands over (see :class:`hydra.plugins.launcher.Launcher`)."""
        self.hydra_context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Makes every cell; a failed cell does not stop the others.

        Args:
            job_overrides: The overrides of each cell.
            initial_job_idx: Number of the first cell.

        Raises:
            SystemExit: A cell failed, or the grid has faults, or a signal has stopped it.
        """
        from gda.cluster.processes.grid import run_grid_in_processes

        cells = composed_cells(self.hydra_context, self.config, job_overrides, initial_job_idx)
        return run_grid_in_processes(cells)


@dataclass
class ProcessesLauncherConf:
    """Hydra's config of the launcher."""

    _target_: str = "hydra_plugins.gda_launcher.processes.ProcessesLauncher"


ConfigStore.instance().store(
    group="hydra/launcher", name="gda_processes", node=ProcessesLauncherConf, provider="gda"
)
