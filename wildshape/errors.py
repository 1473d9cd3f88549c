"""The one exception that a user is meant to see."""


class UserError(Exception):
    """Something the user can mend: shown as one line, without a traceback, exit code 2.

    The message states what was expected, what was found, and the command that mends it.
    """
