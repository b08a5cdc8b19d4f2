"""The errors a caller would catch."""


class InputError(ValueError):
    """Something the user gave is wrong: says what, wanted, given, next action; the command line exits with 2."""


class CorruptFileError(InputError):
    """A file is truncated, damaged or foreign; the message names it."""
