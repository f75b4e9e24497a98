import subprocess
import sys

from gda.report.__main__ import main


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "gda.report", *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def test_tables_are_printed_and_the_page_is_the_last_line(study):
    for seed in range(3):
        study.run("vanilla", seed, last=90.0 + seed)
        study.run("kd [bold]", seed, last=91.0 + 2 * seed, label="kd [bold]")
    done = command("demo", "--runs", study.runs)
    assert done.returncode == 0, done.stderr
    assert "digits, recipe digits: resnet20 -> resnet8 (classification)" in done.stdout
    assert "91.00 ± 1.00" in done.stdout
    assert "kd [bold]" in done.stdout  # a label is no markup
    assert done.stdout.splitlines()[-1] == str(study.folder / "report" / "report.md")
    assert (study.folder / "report" / "table.csv").is_file()


def test_an_unknown_study_names_near_matches_and_what_there_is(study):
    study.run("kd", 0, last=91.0)
    done = command("Demp", "--runs", study.runs)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.strip() == (
        f"There is no study 'Demp' in {str(study.runs)!r}. Did you mean 'demo'? Studies there are: demo."
    )


def test_no_run_folder_no_studies_and_odd_names(study, tmp_path, capsys):
    assert main(["demo", "--runs", str(tmp_path / "nowhere")]) == 1
    assert "--runs DIR" in capsys.readouterr().err
    assert main(["other", "--runs", str(study.runs)]) == 1
    assert "It holds no studies yet." in capsys.readouterr().err
    for name in (".", "..", ""):
        assert main([name, "--runs", str(study.runs)]) == 1


def test_a_study_without_a_finished_run_is_no_error(study, capsys):
    study.run("kd", 0, state="running", epoch=2)
    study.plan([("kd", 0), ("kd", 1)])
    assert main(["demo", "--runs", str(study.runs)]) == 0
    out = capsys.readouterr().out
    assert "No finished run yet" in out
    assert "running at epoch 2/4" in out
    assert out.splitlines()[-1].endswith("report.md")


def test_an_empty_study_and_a_place_that_cannot_be_written(study, tmp_path, capsys):
    assert main(["demo", "--runs", str(study.runs)]) == 0
    assert "No runs and no sweep plans were found." in capsys.readouterr().out
    (tmp_path / "file").write_text("")
    assert main(["demo", "--runs", str(study.runs), "--output", str(tmp_path / "file" / "x")]) == 1
    assert "cannot be written" in capsys.readouterr().err
