"""The node `cluster`: the same keys in every choice, its types and ranges, and a site's own values."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from gda.config.check import check
from gda.config.inputs import identify_run
from gda.config.schema import ClusterSettings

CONF = Path(__file__).resolve().parents[3] / "conf"
CHOICES = sorted(path.stem for path in (CONF / "cluster").glob("*.yaml"))
KEYS = {field.name for field in fields(ClusterSettings)}

Compose = Callable[..., dict[str, Any]]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra_compose("config", overrides=list(overrides), return_hydra_config=True)


def faults(config: dict[str, Any], key: str) -> list[str]:
    return [fault.what for fault in check(config) if fault.where == f"cluster.{key}"]


def test_there_are_these_choices() -> None:
    assert set(CHOICES) == {"local", "local_parallel", "local_ddp", "slurm", "slurm_ddp", "slurm_packed"}


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_has_every_key_and_is_free_of_faults(tiny: Compose, choice: str) -> None:
    config = tiny(f"cluster={choice}")
    assert set(config["cluster"]) == KEYS
    assert config["cluster"]["name"] == choice
    assert check(config) == []


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_brings_its_launcher_and_needs_no_flag(choice: str) -> None:
    config = composed(f"cluster={choice}")
    launcher = "gda_local" if choice == "local" else "gda_processes" if "local" in choice else "gda_slurm"
    assert config.hydra.runtime.choices["hydra/launcher"] == launcher
    assert config.hydra.runtime.choices["hydra/sweeper"] == "gda_grid"
    mode = OmegaConf.to_container(config.hydra)["mode"]  # type: ignore[index, call-overload]
    assert str(mode).endswith("MULTIRUN") == (choice != "local")


@pytest.mark.parametrize("choice", CHOICES)
def test_where_a_run_goes_does_not_change_what_it_is(tiny: Compose, choice: str) -> None:
    config = tiny(f"cluster={choice}", "cluster.nodes=1", "cluster.ranks_per_node=1", "cluster.partition=gpu")
    assert identify_run(config) == identify_run(tiny())


def test_processes_of_a_distributed_run_follow_its_gpus(tiny: Compose) -> None:
    assert tiny("cluster=slurm_ddp")["cluster"]["ranks_per_node"] == 2
    assert tiny("cluster=slurm_ddp", "cluster.gpus_per_node=4")["cluster"]["ranks_per_node"] == 4
    on_cpus = tiny("cluster=slurm_ddp", "cluster.gpus_per_node=0", "cluster.ranks_per_node=2")["cluster"]
    assert (on_cpus["gpus_per_node"], on_cpus["ranks_per_node"]) == (0, 2)


def test_a_local_run_has_as_many_processes_as_were_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert composed().cluster.ranks_per_node == 1
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    assert composed().cluster.ranks_per_node == 3
    monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun within a job
    assert composed().cluster.ranks_per_node == 2


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("nodes", "0", "at least 1"),
        ("ranks_per_node", "0", "at least 1"),
        ("side_by_side", "0", "at least 1"),
        ("side_by_side", "two", "not a whole number"),
        ("partition", "[gpu]", "not text"),
        ("timeout_min", "0", "at least 1"),
        ("timeout_min", "1.5", "not a whole number"),
        ("gpus_per_node", "-1", "at least 0"),
        ("cpus_per_task", "0", "at least 1"),
        ("mem_gb", "0", "greater than 0"),
        ("array_parallelism", "0", "at least 1"),
        ("signal_delay_s", "-1", "at least 0"),
        ("max_requeues", "-1", "at least 0"),
        ("setup", "module", "not a list"),
        ("setup", "[1]", "not text"),
        ("sbatch", "[--exclusive]", "not a mapping"),
        ("wait", "maybe", "not true or false"),
        ("allow_changed_code", "null", "not true or false"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_a_fault(
    tiny: Compose, key: str, value: str, what: str
) -> None:
    found = faults(tiny("cluster=slurm", f"cluster.{key}={value}"), key)
    assert len(found) == 1
    assert what in found[0] or f"where each value is {what.removeprefix('not ')}" in found[0]


def test_names_may_be_numbers_and_flags_be_anything_plain(tiny: Compose) -> None:
    flags = "cluster.sbatch={constraint: a100, exclusive: true, nice: 10, requeue: null}"
    assert check(tiny("cluster=slurm", "cluster.account=1234", "cluster.partition=2024", flags)) == []


def test_a_mistyped_key_is_a_fault_with_the_nearest(tiny: Compose) -> None:
    (found,) = faults(tiny("cluster=slurm", "+cluster.partiton=gpu"), "partiton")
    assert "did you mean 'partition'?" in found


@pytest.mark.parametrize("choice", CHOICES)
def test_a_sites_own_values_hold_for_every_choice(tmp_path: Path, choice: str) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "default.yaml").write_text(
        "# @package _global_\n"
        "cluster: {partition: gpu, account: abc, setup: [module load cuda], sbatch: {constraint: a100}}\n"
    )
    config = composed(f"cluster={choice}", f"hydra.searchpath=[file://{tmp_path}]", "cluster.account=mine")
    own = config.cluster
    assert (own["partition"], own["account"], own["setup"]) == ("gpu", "mine", ["module load cuda"])
    assert own["sbatch"] == {"constraint": "a100"}
    if "slurm" in choice:
        launcher = config.hydra.launcher
        assert (launcher.partition, launcher.account, launcher.setup) == ("gpu", "mine", ["module load cuda"])


def test_every_option_of_the_stock_launcher_is_there() -> None:
    config = composed("cluster=slurm", "hydra.launcher.exclude=node7", "hydra.launcher.timeout_min=5")
    stock = composed("hydra/launcher=submitit_slurm").hydra.launcher
    assert set(stock) <= set(config.hydra.launcher)
    assert (config.hydra.launcher.exclude, config.hydra.launcher.timeout_min) == ("node7", 5)
