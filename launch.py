"""The door: scans the command line for typos, then composes ``conf/`` and hands over to ``gda.app``."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from gda.config.overrides import answer_or_stop


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    """Turns one composed config into one finished run."""
    from gda.app import run  # imported late: --help and --cfg answer without torch

    run(config)


if __name__ == "__main__":
    try:
        answer_or_stop(Path(__file__).parent / "conf")
        main()
    except KeyboardInterrupt:  # outside a run, which has its own words
        sys.stderr.write("Interrupted. What was finished is kept; the same command continues.\n")
        sys.exit(130)
