"""The two ways in which a command fails, and the exit codes they stand for."""


class InputError(ValueError):
    """What the user gave cannot be used; the text names the rule, the value and the way out.

    The command line prints the text and exits with 2.
    """


class WorkError(RuntimeError):
    """The input was sound and the work failed: a full disk, a run that diverged.

    The command line prints the text and exits with 1.
    """


class FailedCheckError(WorkError):
    """A check that a command prints as its result, and that did not pass."""
