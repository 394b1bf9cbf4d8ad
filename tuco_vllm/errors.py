"""The errors a caller is meant to see: one line each, naming what is wrong and how to mend it."""


class TucoError(Exception):
    """Base of every error that the command line prints as one line without a traceback."""

    exit_code = 3


class InputError(TucoError):
    """Something the caller gave is unusable (a path, a model, a column, a setting): nothing was run."""

    exit_code = 2


class EngineError(TucoError):
    """The engine could not start or died; work already written stays."""

    exit_code = 3


class EngineStartError(EngineError):
    """An engine that is to take the place of a dead one does not start."""
