"""The errors of this room; each message is one short paragraph with the place and the remedy."""


class DataError(Exception):
    """The data is missing, damaged, or of a shape that cannot be trained on."""

    exit_code = 2


class ModelError(Exception):
    """The model or its tokenizer cannot be loaded or used."""

    exit_code = 2


class RunError(Exception):
    """The run failed."""

    exit_code = 1
