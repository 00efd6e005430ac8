"""Errors of commands and their exit codes."""


class InputError(ValueError):
    """Unusable input from the user; the text names the rule, the value and the way out.

    The command line prints the text and exits with 2.
    """


class WorkError(RuntimeError):
    """Failure of the work on valid input, such as a full disk or a diverged run.

    The command line prints the text and exits with 1.
    """


class FailedCheckError(WorkError):
    """Failure of a check whose outcome the command prints as its result."""
