"""Studies on disk as sweeps, jobs and runs leave them, and a SLURM that says what a test wants."""

import json
import logging
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gda.cluster.state.queue import JobState
from gda.cluster.state.submission import Submission, SubmittedJob, write_submission
from gda.tracking.run_folder import RunFolder

_SLURM_VARIABLES = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT")


def ago(seconds: float) -> str:
    """An ISO time in the past."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")


class StudyFolders:
    """Writes plans, submissions and run folders below ``runs/demo``."""

    def __init__(self, runs: Path, monkeypatch: pytest.MonkeyPatch, name: str = "demo") -> None:
        self.runs = runs
        self.study = runs / name
        self._monkeypatch = monkeypatch

    def beside(self, name: str) -> "StudyFolders":
        """Another study in the same folder."""
        return StudyFolders(self.runs, self._monkeypatch, name)

    def folder(self, name: str, seed: int = 0) -> Path:
        return self.study / name / f"seed{seed}"

    def plan(
        self,
        *cells: tuple[str, int] | tuple[str, int, str],
        sweep: str = "2026-01-01_00-00-00",
        inputs: tuple[Path, ...] = (),
        **facts: Any,
    ) -> Path:
        """A plan of (name, seed[, title]) cells; the title is ``NAME seed=K`` if not given."""
        listed = []
        for name, seed, *title in cells:
            named = title[0] if title else f"{name} seed={seed}"
            listed.append(
                {"folder": f"{name}/seed{seed}", "title": named, "label": name, "seed": seed, **facts}
            )
        asked = [{"folder": str(folder), "title": f"teacher {folder.parent.name}"} for folder in inputs]
        path = self.study / "sweeps" / sweep / "plan.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"created": ago(0), "cells": listed, "inputs": asked}))
        return path.parent

    def submit(
        self, jobs: dict[str, list[Path]], sweep: str = "2026-01-01_00-00-00", submitted: str | None = None
    ) -> Path:
        """A submission of jobs, whose logs are ``logs/JOB.out``."""
        folder = self.study / "sweeps" / sweep
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        records = tuple(
            SubmittedJob(
                job, f"jobs/{number}.json", tuple(map(str, runs)), str(folder / "logs" / f"{job}.out")
            )
            for number, (job, runs) in enumerate(jobs.items())
        )
        write_submission(folder, Submission(submitted or ago(1000), records))
        return folder

    def run(
        self,
        folder: Path,
        state: str = "running",
        epoch: int = 2,
        epochs: int = 10,
        job: str | None = None,
        seconds: float = 3.0,
        error: str = "it went wrong",
    ) -> RunFolder:
        """A run folder as the trainer writes it; nobody holds its lock. ``seconds`` is an epoch's length."""
        for variable in _SLURM_VARIABLES:
            self._monkeypatch.delenv(variable, raising=False)
        if job is not None:
            array, _, task = job.partition("_")
            self._monkeypatch.setenv("SLURM_JOB_ID", array)
            if task:
                self._monkeypatch.setenv("SLURM_ARRAY_JOB_ID", array)
                self._monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        logging.getLogger("gda").setLevel(logging.DEBUG)  # as every command does: the log is for tracebacks
        run = RunFolder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with run.logged():
            seed = int(folder.name.removeprefix("seed"))
            run.begin({"seed": seed}, {"label": folder.parent.name, "seed": seed}, epochs)
            for number in range(1, epoch + 1):
                third = seconds / 3
                timing = {"train_seconds": third, "evaluate_seconds": third, "save_seconds": third}
                run.append({"epoch": number}, {"epoch": number, **timing})
            if state == "failed":
                try:
                    raise RuntimeError(error)
                except RuntimeError as raised:
                    run.fail(raised)
            elif state != "running":
                ways = {
                    "done": lambda: run.finish({"last": {"epoch": epoch, "test_top1": 90.0}, "best": None}),
                    "interrupted": run.interrupt,
                    "preempted": run.preempt,
                }
                ways[state]()
        return run

    def lock(self, folder: Path, silent: float = 0.0, host: str = "elsewhere") -> None:
        """A lock of another host, which was touched so many seconds ago."""
        holder = {"host": host, "pid": 1, "process_start": "boot/space/1", "created": ago(-5), "token": "t"}
        path = folder / "run.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(holder))
        beat = time.time() - silent
        os.utime(path, (beat, beat))


class FakeSlurm:
    """``squeue`` and ``sacct`` as scripts, alone on PATH."""

    LAYOUT = "JobArrayID:40,JobID:20,State:20,RestartCnt:10,TimeUsed:20,Reason:80"

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        monkeypatch.setenv("PATH", str(folder))
        self.says()

    def says(
        self, queue: dict[str, JobState] | None = None, accounts: dict[str, tuple[str, int]] | None = None
    ) -> None:
        """Sets the jobs in the queue, and those in the accounts with their state and seconds."""
        lines = [
            f"{job:40}{state.number or job:20}{state.state:20}{state.restarts:<10}"
            f"{_clock(state.seconds):20}{state.reason or 'None':80}"
            for job, state in (queue or {}).items()
        ]
        self.script("squeue", lines, check=f'case "$*" in *"-O {self.LAYOUT}") ;; *) exit 2;; esac')
        past = [f"{job}|{job}|{state}|{seconds}" for job, (state, seconds) in (accounts or {}).items()]
        self.script("sacct", past)

    def script(self, name: str, lines: list[str], check: str = "", ending: str = "") -> None:
        """Writes a program that prints lines, and notes how it was called."""
        text = "".join(f"{line}\n" for line in lines)
        path = self.folder / name
        path.write_text(
            f"#!/bin/sh\necho \"{name} $*\" >> '{self.folder}/calls'\n{check}\n"
            f"while IFS= read -r line; do echo \"$line\"; done <<'END'\n{text}END\n{ending}\n"
        )
        path.chmod(0o755)

    def remove(self, *names: str) -> None:
        for name in names:
            (self.folder / name).unlink()

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


def _clock(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24}-{hours % 24:02}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
