"""Errors that are written for the person who typed the command."""


class UserError(Exception):
    """Something the user can put right.

    The message is one paragraph: what is wrong, where, and what to type instead. The
    command line prints it without a traceback and exits with ``exit_code``.
    """

    exit_code = 1


class RunInterrupted(UserError):
    """The run was stopped by Ctrl-C; the same command continues it."""

    exit_code = 130


class RunPreempted(RunInterrupted):
    """A cluster wants the node back; the run is saved, and continues when the job comes back.

    Attributes:
        signal: Number of the signal that said so.
    """

    exit_code = 143

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class RankLost(UserError):
    """Another process of the run ended without a word."""
