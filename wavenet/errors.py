"""Errors a user can cause: each message is one line saying what was wrong, with the value, and what to do."""


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
    """A checkpoint that is missing, torn, of another version, or does not fit its configuration."""


class BackendError(WaveNetError):
    """A backend that cannot serve the request, or a network whose output is not usable."""
