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
