"""Every launch command that the README shows, checked as written; its own-method example, run."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from gda.config.check import check
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
def test_launch_command_passes_the_check(
    arguments: list[str], compose: Callable[..., dict[str, Any]], image_root: Path, tmp_path: Path
) -> None:
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
        faults = check(compose(*cell))
        # The example folder of two tiny classes is no data set; only its size may be complained of.
        faults = [fault for fault in faults if "last batch" not in fault.what]
        if any(re.match(r"experiment=few_shot/(?!pipeline$)", override) for override in cell):
            # What is published is about data that is not here; nothing else may be complained of.
            assert {fault.where for fault in faults} == {"dataset"}
            faults = []
        assert faults == []


def answer(marker: str, folder: Path) -> tuple[list[str], list[str]]:
    """Runs the command of a console example; returns what it says, and what is shown."""
    shown = example("console", marker).splitlines()
    program, *arguments = shown[0].removeprefix("$ python ").split()
    process = subprocess.run(
        [sys.executable, str(ROOT / program), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 1
    return process.stderr.splitlines(), shown[1:]


def test_mistyped_names_are_answered_as_shown(tmp_path: Path) -> None:
    said, shown = answer("resnet2O", tmp_path)
    assert said == shown


def test_weights_that_do_not_fit_are_answered_as_shown(tmp_path: Path) -> None:
    import torch

    from gda.models import create_model

    torch.save({"model": create_model("resnet56", 100).state_dict()}, tmp_path / "resnet56.pth")
    said, shown = answer("resnet56.pth", tmp_path)
    assert said == shown


def test_the_table_of_methods_is_the_listing() -> None:
    from gda.distillers.__main__ import markdown
    from gda.distillers.catalogue import methods

    begin, end = "<!-- python -m gda.distillers --markdown -->\n", "<!-- end -->"
    assert README.partition(begin)[2].partition(end)[0].strip() == markdown(methods())


def test_the_commands_of_the_zoo_run_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    from gda.models.__main__ import main

    shown = [command.split()[3:] for command in COMMANDS if re.match(r"python -m gda\.models( |$)", command)]
    assert shown == [[], ["resnet32x4"]]
    for arguments in shown:
        assert main(arguments) == 0
        assert "resnet32x4" in capsys.readouterr().out


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
