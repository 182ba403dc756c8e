"""The one exception for what a user can mend."""


class UserError(ValueError):
    """What the caller gave cannot be used; the message names the value, the limit and the way out.

    Commands print the message alone and exit with status 2. Every other exception is a defect of
    sparse_tx and keeps its traceback.
    """
