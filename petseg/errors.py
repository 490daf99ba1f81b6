"""Exceptions whose text is meant for the user."""


class PetsegError(Exception):
    """Bad input, in one sentence that names the file, key or option and what to do.

    The commands print it and exit with 2.

    Examples:
        >>> try:  # doctest: +SKIP
        ...     petseg.load("runs/none")
        ... except petseg.PetsegError as error:
        ...     print(error)  # doctest: +SKIP
        no such run: runs/none; give the folder that petseg-train wrote, or a .pt file in it.
    """


class RefusedError(PetsegError):
    """A pack that lost too much, or whose masks disagree; its folder may be used again for another try."""


class DamagedError(PetsegError):
    """An image of which a part is missing."""


class TooLittleTimeError(PetsegError):
    """A time limit in which nothing can be learned; nothing of the run is worth keeping."""


class OptionError(PetsegError):
    """A bad value of one option.

    Args:
        option: its name, as `TrainConfig` has it.
        text: what is wrong with it and what to do.
    """

    def __init__(self, option: str, text: str) -> None:
        super().__init__(f"{flag_of(option)}: {text}")
        self.option = option


def flag_of(name: str) -> str:
    """`--batch-size` of the option `batch_size`."""
    return "--" + name.replace("_", "-")
