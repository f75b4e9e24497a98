"""The door: scans the command line for typos, then composes ``conf/`` and hands over to ``gda.app``."""

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
    answer_or_stop(Path(__file__).parent / "conf")
    main()
