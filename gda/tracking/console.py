"""What a person sees while runs go on."""

import logging
import sys


def set_up_logging(quiet: bool = False) -> None:
    """Shows what the ``gda`` loggers say at level INFO on standard output; once per process.

    Args:
        quiet: Show warnings and errors alone, as of a process that does what another one reports.
    """
    logging.getLogger("gda").setLevel(logging.DEBUG)
    if not logging.getLogger("gda").handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setLevel(logging.WARNING if quiet else logging.INFO)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logging.getLogger("gda").addHandler(handler)
        logging.getLogger("gda").propagate = False
