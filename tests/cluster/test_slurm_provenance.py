"""What was submitted is what runs: edits of the project do not change a job that waits in the queue."""

import yaml
from sweeping import Site, project_copy, read

PLAIN = ("distiller=vanilla", "alignment=none", "recipe.epochs=1", "cluster.sbatch={hold: true}")


def test_an_edit_of_the_config_changes_no_job_and_one_of_the_code_stops_it(site: Site) -> None:
    site.project = project_copy(site.folder)
    site.submit(*PLAIN, "study=stopped")
    site.submit(*PLAIN, "study=allowed", "cluster.allow_changed_code=true")
    recipe = site.project / "conf" / "recipe" / "digits.yaml"
    recipe.write_text(recipe.read_text().replace("momentum: 0.9", "momentum: 0.5"))
    site.submit(*PLAIN, "study=edited")
    code = site.project / "gda" / "seeding.py"
    code.write_text(code.read_text() + "\n# changed\n")
    studies = ("stopped", "allowed", "edited")
    site.slurm("scontrol", "release", *(site.job(study) for study in studies))
    site.wait(*studies)

    assert site.states(site.job("stopped")) == ["FAILED"]
    exit_code, status = site.status("stopped")
    (cell,) = status["cells"]
    assert (exit_code, cell["state"]) == (1, "failed")
    assert "code" in cell["error"]
    log = site.log("stopped")
    assert "gda/seeding.py" in log
    assert "allow_changed_code" in log
    assert "Traceback" not in log

    assert site.states(site.job("allowed")) == ["COMPLETED"]
    allowed = yaml.safe_load((site.run_folder("allowed") / "config.yaml").read_text())
    assert allowed["recipe"]["optimizer"]["momentum"] == 0.9, "frozen at submission"

    # the same command submits the code as it is now, and the config as it is now: another run
    site.submit(*PLAIN[:3], "study=stopped")
    site.wait("stopped")
    folders = sorted((site.folder / "runs" / "stopped").glob("*/seed*/status.json"))
    assert "done" in [read(path)["state"] for path in folders]
