"""The exit codes of all commands, and the error that ends one."""

import typer

#: All is well; something was found wrong; the command could not be run.
EXIT_OK, EXIT_FAILED, EXIT_CANNOT_RUN = 0, 1, 2


class CannotRun(typer.TyperException):
    """The error that ends a command which cannot do its work.

    Its message is one line that says what is wrong, where, and the change that mends it.
    """

    exit_code = EXIT_CANNOT_RUN
