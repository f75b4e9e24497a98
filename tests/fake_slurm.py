"""SLURM's programs as shell scripts that answer from files: quick, and able to refuse what a test wants."""

import json
from dataclasses import dataclass
from pathlib import Path

PARTITION = (
    "PartitionName={name} AllowGroups=ALL Default={default} MaxNodes={nodes} MaxTime={time} State={state} "
    "TRES=cpu=4"
)

_SBATCH = """
if [ "$1" = --test-only ]; then
    cat > "$here/checked.sh"
    if [ -e "$here/refuse_check" ]; then cat "$here/refuse_check" >&2; exit 1; fi
    exit 0
fi
number=$(( $(cat "$here/number") + 1 )); echo $number > "$here/number"
if [ -e "$here/refuse_$number" ]; then cat "$here/refuse_$number" >&2; exit 1; fi
cp "$1" "$here/$number.sh"
env > "$here/$number.env"
tasks=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
if [ -n "$tasks" ]; then
    for task in $(seq 0 $tasks); do echo "$number ${number}_$task PENDING $1" >> "$here/queue"; done
else
    echo "$number $number PENDING $1" >> "$here/queue"
fi
echo "Submitted batch job $number"
if [ -e "$here/then_$number" ]; then . "$here/then_$number"; fi
"""
_SQUEUE = """
if [ -e "$here/refuse_squeue" ]; then cat "$here/refuse_squeue" >&2; exit 1; fi
case "$*" in
*"%F|%o"*) while read number id state script; do echo "$number|$script"; done < "$here/queue" ;;
*) while read number id state script; do
    printf '%-40s%-20s%-20s%-10s%-20s%-80s\\n' $id $number $state 0 0:00 None
done < "$here/queue" ;;
esac
"""
_SCANCEL = """
for id in "$@"; do
    base=${id%%_*}
    if [ "$base" = "$id" ]; then sed -i "/^$id /d" "$here/queue"; else sed -i "/ $id /d" "$here/queue"; fi
done
"""
_SCRIPTS = {
    "sbatch": _SBATCH,
    "squeue": _SQUEUE,
    "scancel": _SCANCEL,
    "srun": "exit 0\n",
    "sacct": "exit 0\n",
    "sinfo": 'cat "$here/nodes"\n',
    "scontrol": 'case "$*" in *partition*) cat "$here/partitions" ;; *) cat "$here/config" ;; esac\n',
    "sacctmgr": 'case "$*" in *qos*) cat "$here/qualities" ;; *) cat "$here/accounts" ;; esac\n',
}


@dataclass(frozen=True)
class FakeSlurm:
    """A cluster that accepts jobs and never runs them.

    Attributes:
        folder: Holds the programs, in `bin`, and what they answer.
    """

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "FakeSlurm":
        (folder / "bin").mkdir(parents=True)
        for name, body in _SCRIPTS.items():
            script = folder / "bin" / name
            log = f'here={folder}\necho "{name} $*" >> "$here/calls"\n'
            script.write_text(f"#!/bin/bash\n{log}{body}")
            script.chmod(0o755)
        for name in ("queue", "calls"):
            (folder / name).touch()
        (folder / "number").write_text("100")
        (folder / "config").write_text("MaxArraySize            = 1001\n")
        fake = cls(folder)
        fake.partitions(
            {"name": "gpu", "default": "YES", "nodes": "2", "time": "2-00:00:00"},
            {"name": "cpu", "time": "UNLIMITED"},
        )
        fake.say("nodes", "gpu|3|16|64000|gpu:a100:4(S:0-1)", "cpu|8|64|256000|(null)")
        fake.say("accounts", "vision", "default")
        fake.say("qualities", "normal", "long")
        return fake

    @property
    def bin(self) -> str:
        return str(self.folder / "bin")

    def say(self, name: str, *lines: str) -> None:
        """Sets what a program answers."""
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines))

    def partitions(self, *partitions: dict[str, str]) -> None:
        known = {"default": "NO", "nodes": "UNLIMITED", "time": "UNLIMITED", "state": "UP"}
        self.say("partitions", *(PARTITION.format(**{**known, **each}) for each in partitions))

    def calls(self, program: str) -> list[str]:
        lines = (self.folder / "calls").read_text().splitlines()
        return [line for line in lines if line.split()[0] == program]

    def submitted(self) -> dict[str, str]:
        """The scripts that were accepted, by job id."""
        return {path.stem: path.read_text() for path in sorted(self.folder.glob("[0-9]*.sh"))}

    def queue(self) -> list[str]:
        """Ids of jobs, and of tasks of arrays, that are in the queue."""
        return [line.split()[1] for line in (self.folder / "queue").read_text().splitlines()]

    def end(self, *ids: str) -> None:
        """Takes jobs out of the queue."""
        lines = (self.folder / "queue").read_text().splitlines()
        self.say("queue", *(line for line in lines if line.split()[1] not in ids))


def flags(script: str) -> dict[str, str]:
    """Returns the flags of a batch script."""
    found = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH --"):
            name, _, value = line.removeprefix("#SBATCH --").partition("=")
            found[name] = value.strip("'")
    return found


def mark_done(*folders: Path) -> None:
    """Makes run folders look finished."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        status = {"state": "done", "epoch": 2, "epochs": 2, "attempt": 1, "error": None, "result": {}}
        (folder / "status.json").write_text(json.dumps({**status, "updated": "2024-01-01T00:00:00+00:00"}))
        for name in ("last.pt", "best.pt"):
            (folder / name).touch()
