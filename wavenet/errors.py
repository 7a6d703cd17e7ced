"""Errors that a user can cause. A message is one line: what is wrong, with the value, and what to do."""


class WaveNetError(Exception):
    """Base of every error that a command reports in one line and exit code 1.

    Attributes
    ----------
    argument : str or None
        Name of the argument whose value causes the error, as in `cache_dir`; a command adds its option.
    """

    def __init__(self, message: str = "", argument: str | None = None) -> None:
        super().__init__(message)
        self.argument = argument


class ConfigError(WaveNetError):
    """A setting outside its range, unknown, or missing."""


class AudioError(WaveNetError):
    """A recording or folder that cannot be read, or an output that cannot be written."""


class CheckpointError(WaveNetError):
    """A checkpoint that is missing, damaged, of another version, or does not match its configuration."""


class BackendError(WaveNetError):
    """A backend that does not support the request, or a network with non-finite output."""
