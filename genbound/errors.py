"""The one exception a user sees: what is wrong, where, and what would mend it, in one line."""


class GenboundError(Exception):
    """Wrong input or arguments.

    The message is a single line that names the cause, the place and the mend. The command line prints it
    after ``genbound: error:`` and exits with status 2.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))
