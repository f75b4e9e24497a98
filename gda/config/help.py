"""``launch.py --help``: what can be typed, from the files in ``conf/``, without composing anything.

Hydra's own help page composes the config and lists every group twice, which takes seconds.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

_TEXT = """\
launch.py: one composed config becomes one finished, reproducible run.

Usage
  python launch.py                                     KD with GDA on the embedded digits
  python launch.py student=resnet20 distiller=dkd      change choices
  python launch.py recipe.epochs=5 alignment.sinkhorn.weight=0.05
                                                       change values
  python launch.py -m distiller=kd,dkd alignment=none,gda seed=0,1,2
                                                       every combination, one after the other
  python launch.py experiment=dkd/resnet56_resnet20    METHOD/TEACHER_STUDENT, a preset; its file
                                                       states command and source
  python launch.py sweep=main_table                    a grid kept as a file
  python launch.py check=true ...                      check everything, run nothing
  python launch.py experiment=few_shot/pipeline        few-shot: classifiers, distillation, test, table
  python -m gda.report STUDY                           the table of a study

Groups (GROUP=CHOICE)
{groups}

Values (KEY=VALUE)
  study=NAME      runs of one study are compared by one report
  seed=0          seeds the student, the data order, the augmentation and the terms
  runs=FOLDER     folder of all run folders
  teacher.checkpoint=auto|FILE|RUN_FOLDER|URL|mlflow:RUN_ID, teacher.weights=raw|ema, teacher.sha256=HEX
  teacher.seed=0, teacher.checkpoint_select=last|best
  encoder.checkpoint=...                               likewise: what a few-shot student starts from
  dataset.validation=F                                 share of training images held out
  and every key that `python launch.py --cfg job` shows

Flags
  -m, --multirun                run every combination of comma-separated values
  --cfg job                     show the composed config and stop; add --resolve for final values
  -cd, --config-dir DIR         add a folder of your own config files
  -sc install=bash              shell completion: eval "$(python launch.py -sc install=bash)"
  --hydra-help                  Hydra's own flags
"""

PLACES = {"augmentation": "recipe.train_transforms"}
"""Groups that are part of another node, and where."""

_BEHIND = ("model",)  # shared files behind teacher= and student=


def help_text(groups: Mapping[str, Sequence[str]]) -> str:
    """Returns the help page.

    Args:
        groups: The choices of every config group, by the group's name.
    """
    lines = []
    for group, choices in sorted(groups.items()):
        if "/" in group or group in _BEHIND or group.startswith("_"):
            continue
        placed = f"{group}@{PLACES[group]}" if group in PLACES else group
        lines.extend(_wrapped(f"  {placed}=", _gathered(choices)))
    return _TEXT.format(groups="\n".join(lines))


def _gathered(choices: Sequence[str]) -> list[str]:
    """Names folders of choices once: there are too many presets to list."""
    folders = Counter(choice.rpartition("/")[0] for choice in choices)
    single = [choice for choice in choices if "/" not in choice]
    return single + [f"{folder}/... ({count})" for folder, count in folders.items() if folder]


def _wrapped(head: str, choices: Sequence[str], width: int = 96) -> list[str]:
    lines, line = [], head.ljust(16)
    for number, choice in enumerate(choices):
        piece = choice if number == 0 else f" | {choice}"
        if len(line) + len(piece) > width:
            lines.append(line + " |")
            line = " " * 16 + choice
        else:
            line += piece
    return [*lines, line]
