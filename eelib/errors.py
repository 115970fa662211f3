"""The errors that eelib raises on purpose. Each says what was given, what was expected, and what to do."""


class EelibError(Exception):
    """Base of every error that eelib raises on purpose."""


class InvalidInputError(EelibError, ValueError):
    """An argument that no call could accept: out of range, of the wrong length, an unknown name."""


class ModelError(EelibError):
    """A model that is not known, not there, or cannot be cut into segments."""


class HeadsError(EelibError):
    """Heads that do not fit: another backbone's, or without a depth that was asked for."""


class CorpusError(EelibError):
    """Text that cannot be used: empty, unreadable, or too short to split."""


class TrainingError(EelibError):
    """Training that cannot go on: a loss that is not a number, a checkpoint of another run, or no room for one."""


class TeacherError(EelibError):
    """Teacher outputs cannot be cached: no room on the disk."""


class FetchError(EelibError):
    """A download that failed, is damaged, or found no room on the disk."""


class UnsupportedError(EelibError):
    """A generation option that transformers knows and this engine does not offer (yet)."""


class BatchError(EelibError):
    """A notebook that failed in batch, or a second batch over the same files."""


class MissingExtraError(EelibError, ImportError):
    """A part of eelib whose packages are not installed."""
