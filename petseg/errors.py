"""The one exception that a person is meant to read."""


class PetsegError(Exception):
    """Bad input, said in one sentence that names the file, key or option and what to do.

    The commands print it without a traceback and exit with code 2. Library users catch it like any exception.
    """
