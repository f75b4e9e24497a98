"""What a person sees while runs go on."""

import logging
import sys


def set_up_logging() -> None:
    """Shows what the ``gda`` loggers say at level INFO on standard output; once per process."""
    logging.getLogger("gda").setLevel(logging.DEBUG)
    if not logging.getLogger("gda").handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setLevel(logging.INFO)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logging.getLogger("gda").addHandler(handler)
        logging.getLogger("gda").propagate = False
