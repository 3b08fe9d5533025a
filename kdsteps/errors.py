"""The one error a user meets: something they can mend."""


class KdstepsError(Exception):
    """Where it is, what was found and what would be right, in one sentence.

    The command prints the sentence and ends with status 2.
    """
