"""The error of this room."""


class ConfigError(Exception):
    """A wrong command line or configuration. The message is one short paragraph: what is wrong, where,
    and what to do."""

    exit_code = 2
