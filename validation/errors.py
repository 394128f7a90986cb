"""The one exception that is shown to people instead of a traceback."""


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: the thing, the place, the fix."""
