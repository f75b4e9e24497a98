"""``hydra/launcher=gda_slurm``: the cells of a sweep, as jobs of a SLURM cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher import submitit_launcher  # type: ignore[import-untyped]
from hydra_plugins.hydra_submitit_launcher.config import (  # type: ignore[import-untyped]
    BaseQueueConf,
    SlurmQueueConf,
)
from omegaconf import OmegaConf

from hydra_plugins.gda_launcher.compose import composed_cells


class SlurmLauncher(submitit_launcher.SlurmLauncher):
    """Submitit's launcher, which submits what is missing of a checked grid, frozen, and returns.

    The stock launcher waits for its jobs, raises at the first that failed, and composes the config again
    when a job starts. Its options are kept, all of them: ``hydra.launcher.*``.
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submits the cells of a sweep that are neither finished nor in the queue.

        Args:
            job_overrides: The overrides of each cell.
            initial_job_idx: Number of the first cell.

        Raises:
            SystemExit: The grid or what it asks of the cluster has faults, or SLURM refused it, or
                Ctrl-C was pressed; with ``cluster.wait=true``, too, when a cell is not finished.
        """
        from gda.cluster.slurm.grid import submit_grid
        from gda.job import SlurmJob

        assert self.hydra_context is not None
        assert self.config is not None
        cells = composed_cells(self.hydra_context, self.config, job_overrides, initial_job_idx)
        # What a sweep's own file says of the cluster stands in its cells, not in the config above them.
        load = self.hydra_context.config_loader.load_sweep_config
        first = load(self.config, list(job_overrides[0]))
        self.params: dict[str, Any] = OmegaConf.to_container(first.hydra.launcher, resolve=True)  # type: ignore[assignment]
        return submit_grid(cells, self.params, self.executor, SlurmJob)

    def executor(self, folder: Path, parameters: Mapping[str, Any]) -> Any:
        """Returns submitit's executor; nothing has been written or submitted then.

        Args:
            folder: Where it keeps its files, and the jobs their output.
            parameters: What a job asks for, under the names of ``hydra.launcher``.

        Raises:
            NameError: Submitit knows no such parameter.
        """
        import submitit  # late: Hydra imports every plug-in, whatever is asked for

        shared = set(OmegaConf.structured(BaseQueueConf).keys())
        given = {name: value for name, value in parameters.items() if name not in _NOT_OF_A_JOB}
        executor = submitit.AutoExecutor(
            folder=folder, cluster="slurm", slurm_max_num_timeout=parameters["max_num_timeout"]
        )
        executor.update_parameters(
            **{name if name in shared else f"slurm_{name}": value for name, value in given.items()}
        )
        return executor


_NOT_OF_A_JOB = {"_target_", "submitit_folder", "max_num_timeout"}


@dataclass
class SlurmLauncherConf(SlurmQueueConf):
    """Hydra's config of the launcher: the stock launcher's, filled from the node ``cluster``.

    Attributes:
        submitit_folder: Where submitit's files and the jobs' output go; null: ``logs`` of the sweep folder.
        name: Name of the jobs, before what they make; null: the study.
        comment: Comment of the jobs; null: the sweep.
        additional_parameters: Further flags of sbatch, as ``cluster.sbatch``.
        srun_args: Further arguments of srun.
    """

    _target_: str = "hydra_plugins.gda_launcher.slurm.SlurmLauncher"
    submitit_folder: Any = None
    name: Any = None
    # The check says what is wrong with a value, not Hydra: hence no types here.
    nodes: Any = "${cluster.nodes}"
    tasks_per_node: Any = "${cluster.ranks_per_node}"
    gpus_per_node: Any = "${cluster.gpus_per_node}"
    cpus_per_task: Any = "${cluster.cpus_per_task}"
    mem_gb: Any = "${cluster.mem_gb}"
    timeout_min: Any = "${cluster.timeout_min}"
    partition: Any = "${cluster.partition}"
    account: Any = "${cluster.account}"
    qos: Any = "${cluster.qos}"
    array_parallelism: Any = "${cluster.array_parallelism}"
    signal_delay_s: Any = "${cluster.signal_delay_s}"
    max_num_timeout: Any = "${cluster.max_requeues}"
    additional_parameters: Any = None
    setup: Any = "${cluster.setup}"
    stderr_to_stdout: bool = True  # one log tells what happened, in its order
    srun_args: list[str] = field(default_factory=list)


ConfigStore.instance().store(group="hydra/launcher", name="gda_slurm", node=SlurmLauncherConf, provider="gda")
