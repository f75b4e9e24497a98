"""Every launch command that the README shows, checked as written; its own-method example, run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from gda.config.check import check, resolved
from gda.config.overrides import scan

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.S)
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
LAUNCHES = [
    command.removeprefix("python launch.py").split()
    for command in COMMANDS
    if command.startswith("python launch.py") and "--" not in command
]


def example(language: str, marker: str) -> str:
    """Returns the code block of a language that holds a word."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.S)
    (found,) = [block for block in blocks if marker in block]
    return found


def test_the_readme_shows_the_commands_that_are_tested_here() -> None:
    assert len(LAUNCHES) >= 10
    assert [] in LAUNCHES
    assert any("-m" in launch for launch in LAUNCHES)


@pytest.mark.parametrize("arguments", LAUNCHES, ids=" ".join)
def test_launch_command_passes_the_check(arguments: list[str], image_root: Path, tmp_path: Path) -> None:
    from gda.models import create_model

    overrides = [argument for argument in arguments if argument != "-m"]
    if any("FILE" in override for override in overrides):
        import torch

        torch.save(create_model("resnet56", 100).state_dict(), tmp_path / "teacher.pt")
        overrides.append("dataset.download=true")  # no data here: the check must not mind that
    stand_ins = {"FOLDER": str(image_root), "FILE": str(tmp_path / "teacher.pt")}
    overrides = [re.sub("FOLDER|FILE", lambda found: stand_ins[found[0]], override) for override in overrides]
    assert scan(overrides, [ROOT / "conf"]) == []
    parsed = OverridesParser.create().parse_overrides(overrides)
    (cells,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    for cell in cells:
        with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
            faults = check(resolved(compose("config", overrides=list(cell))))
        # The example folder of two tiny classes is no data set; only its size may be complained of.
        assert [fault for fault in faults if "last batch" not in fault.what] == []


def test_mistyped_names_are_answered_as_shown() -> None:
    shown = example("console", "resnet2O").splitlines()
    command = shown[0].removeprefix("$ python ").split()
    process = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert process.returncode == 1
    assert process.stderr.splitlines() == shown[1:]


def test_own_method_runs_as_written(tmp_path: Path) -> None:
    (tmp_path / "my_package.py").write_text(example("python", "class LogitDistance"))
    (tmp_path / "my_conf" / "distiller").mkdir(parents=True)
    (tmp_path / "my_conf" / "distiller" / "mine.yaml").write_text(example("yaml", "LogitDistance"))
    (command,) = [command for command in COMMANDS if "--config-dir" in command]
    assert command.startswith("PYTHONPATH=. python launch.py ")
    arguments = command.removeprefix("PYTHONPATH=. python launch.py ").split()
    small = [
        "teacher=resnet8",
        "recipe.epochs=1",
        "trainer.threads=1",
        "tracking=none",
        f"runs={tmp_path / 'runs'}",
    ]

    def launch(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "launch.py"), *arguments, *small, *more],
            cwd=tmp_path,
            env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    refused = launch("distiller.terms.distance.scale=0")
    assert refused.returncode == 1
    assert "distiller.terms.distance.scale: 0 must be greater than 0" in refused.stderr
    finished = launch()
    assert finished.returncode == 0, finished.stderr
    (run,) = (tmp_path / "runs" / "main").glob("*mine+gda*/seed0")
    assert '"term/distance"' in (run / "metrics.jsonl").read_text()
