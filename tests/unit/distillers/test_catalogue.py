"""The listing of methods: what a config file and its classes say, one's own folder included."""

from pathlib import Path

import pytest

from gda.distillers.__main__ import main
from gda.distillers.catalogue import CONF, methods


def test_every_choice_is_listed_once_with_its_paper() -> None:
    found = {method.name: method for method in methods()}
    choices = [path.stem for group in ("distiller", "plugin") for path in (CONF / group).glob("*.yaml")]
    assert sorted(found) == sorted(set(choices) - {"none"})
    assert [name for name, method in found.items() if not method.paper] == ["vanilla"]
    assert found["dkd"].defaults.startswith("ground truth 1; weight 1 after 20 epochs, alpha 1, beta 8")
    assert found["dot"].kind == "optimiser"
    assert found["sdd"].needs == "final"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "distiller"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "defaults: [kd, _self_]\n"
        "name: mine\n"
        "terms:\n"
        "  hint:\n"
        "    _target_: gda.distillers.fitnet.FitNet\n"
        "    weight: ${distiller.terms.kd.weight}\n"
        "    stages: [3]\n"
    )
    return tmp_path


def test_an_own_method_that_builds_on_another_is_listed_whole(own: Path) -> None:
    (mine,) = methods(own)
    assert mine.defaults == "ground truth 0.1; kd: weight 0.9, temperature 4; hint: weight 0.9, stages 3"
    assert mine.needs == "stage3"


def test_the_command_lists_an_own_folder(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config-dir", str(own), "--markdown"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 3
    assert rows[2].startswith("| `mine` | logit | stage3 |")
    with pytest.raises(SystemExit):
        main(["--config-dir", str(own / "distiller")])
    assert "holds no folder distiller/" in capsys.readouterr().err
