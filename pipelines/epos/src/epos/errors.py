"""Errors with the exit status that the command line gives for them."""


class EposError(Exception):
    """Something failed that the caller can understand from one line."""

    exit_code = 1


class UsageError(EposError):
    """An option or its value is wrong."""

    exit_code = 2


class GateError(EposError):
    """The model was evaluated and is not good enough."""

    exit_code = 3


class DataError(EposError):
    """A data set or model file is missing, damaged or inconsistent; the text starts with the file's path."""

    exit_code = 4


class PeerError(EposError):
    """Another process of the same training was lost or did not come; trying again is all that helps (EX_TEMPFAIL)."""

    exit_code = 75


class Terminated(EposError):
    """SIGTERM arrived (128 + 15, as a shell reports it)."""

    exit_code = 143
