"""The zoo on the terminal, and what importing it costs."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from gda.models import create_model, describe, list_models
from gda.models.__main__ import listing, main, taps_table
from gda.models.registry import FAMILIES
from gda.models.summary import summarise

Capture = pytest.CaptureFixture[str]


def rows(text: str) -> dict[str, list[str]]:
    """Cells of a printed table by the first one."""
    lines = [line.strip("│").split("│") for line in text.splitlines() if line.startswith("│")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_the_listing_has_every_model_once_by_image_size(capsys: Capture) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    table = rows(out)
    assert sorted(table) == list_models()
    assert sum(line.startswith("│") for line in out.splitlines()) == len(table)
    sizes = [int(cells[0]) for cells in table.values()]
    assert sizes == sorted(sizes)
    assert list(table)[:3] == ["resnet8", "resnet20", "resnet32"]  # as its family has them
    assert table["resnet20"] == ["32", "100", "0.28 M", "40.8 M", "16x32", "32x16", "64x8", "-", "64"]
    assert table["resnet12"][3] == "51,130.4 M"
    assert table["mobilenetv1"] == [
        *("224", "1000", "4.23 M", "568.7 M"),
        *("128x56", "256x28", "512x14", "1024x7", "1024"),
    ]


def test_classes_and_size_change_what_they_should(capsys: Capture) -> None:
    assert main(["resnet8", "convnet4", "--classes", "10", "--size", "64", "--json"]) == 0
    resnet, convnet = json.loads(capsys.readouterr().out)
    assert (resnet["classes"], resnet["image_size"]) == (10, 64)
    assert resnet["parameters"] == 78_042
    assert resnet["taps"]["stage3"] == {
        "path": "layer3",
        "shape": [64, 16, 16],
        "stride": 4.0,
        "activated": True,
        "prefix_tokens": 0,
    }
    assert convnet["taps"]["pooled"]["shape"] == [1024]  # built for these images


def test_models_that_can_not_take_the_size_are_left_out_and_named(capsys: Capture) -> None:
    assert main(["--size", "8"]) == 0
    captured = capsys.readouterr()
    table = rows(captured.out)
    assert "resnet8" in table
    assert "resnet12_bottle" not in table
    assert "resnet12_bottle: " in captured.err
    assert len(table) + len(captured.err.splitlines()) == len(list_models())


def test_one_model_in_detail(capsys: Capture) -> None:
    assert main(["resnet8x4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("resnet8x4: 1,233,540 parameters, 177,071,104 multiply-accumulates ")
    assert "per image of 32x32 pixels, 100 classes" in out
    table = rows(out)
    assert table["stage2"] == ["layer2", "128x16x16", "2", "yes"]
    assert table["stage2:pre"] == ["layer2.0.relu2:input", "128x16x16", "2", "no"]
    assert table["pooled"] == ["fc:input", "256", "-", "yes"]
    assert table["fc"] == ["Linear", "25,700"]


def test_timm_models_in_detail(capsys: Capture) -> None:
    assert main(["timm/resnet18", "timm/vit_tiny_patch16_224", "timm/levit_128s", "--json"]) == 0
    resnet, vit, levit = json.loads(capsys.readouterr().out)
    assert resnet["classes"] == vit["classes"] == 1000
    assert [resnet["taps"][f"stage{k}"]["stride"] for k in (1, 2, 3, 4)] == [4, 8, 16, 32]
    assert resnet["image_size"] == vit["image_size"] == 224
    assert resnet["modules"][-1] == {"path": "fc", "kind": "Linear", "parameters": 513_000}
    assert vit["parameters"] == 5_717_416
    assert vit["taps"]["stage4"]["shape"] == [197, 192]
    assert levit["taps"].keys() == {"stage3", "stage4", "pooled"}
    shown = rows(rendered(listing([summarise("timm/vit_tiny_patch16_224")])))
    assert shown["timm/vit_tiny_patch16_224"][-5:] == ["192x14", "192x14", "192x14", "192x14", "192"]


def test_taps_that_a_model_lists_but_never_calls_are_left_out() -> None:
    assert summarise("timm/coat_lite_tiny").taps.keys() == {"pooled"}


def rendered(table: object) -> str:
    console = Console(width=140)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_taps_of_the_model_itself_are_shown_as_such() -> None:
    encoder = describe(create_model("resnet12_bottle", num_classes=None), ["pooled"], 80)
    summary = replace(summarise("resnet12_bottle"), taps=encoder)
    assert rows(rendered(taps_table(summary))) == {"pooled": ["(the model)", "512", "-", "yes"]}


def test_unknown_models_get_the_nearest_ones_and_the_others_are_shown(capsys: Capture) -> None:
    assert main(["resnet21", "resnet8", "timm/resnet81"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("resnet8: ")
    unknown, of_timm = captured.err.splitlines()
    assert "no model 'resnet21'" in unknown
    assert "resnet20" in unknown
    assert "Did you mean timm/" in of_timm
    assert "timm/resnet18 " in of_timm


@pytest.mark.parametrize("arguments", [["--classes", "0"], ["--size", "-1"], ["--size", "x"]])
def test_bad_numbers_are_refused(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_the_thread_count_stays() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        main(["resnet8"])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_importing_builds_nothing() -> None:
    """Neither a family, nor timm, nor torchvision, nor torch's compiler is imported with the package."""
    unwanted = [*FAMILIES, "timm", "torchvision", "torch._dynamo", "mlflow", "rich"]
    code = f"import sys, gda.models; print([name for name in {unwanted!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
