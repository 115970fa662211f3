"""Exceptions of eelib: what was given, what was expected, what to do."""


class EelibError(Exception):
    """Base class of all exceptions that eelib raises itself."""


class InvalidInputError(EelibError, ValueError):
    """Invalid argument: out of range, wrong length, or an unknown name."""


class ModelError(EelibError):
    """Model that is unknown, missing, or cannot be split into blocks."""


class HeadsError(EelibError):
    """Heads of another backbone, or without a requested depth."""


class CorpusError(EelibError):
    """Unusable text: empty, unreadable, or too short to split."""


class TrainingError(EelibError):
    """Training cannot continue: non-finite loss, foreign checkpoint, or full disk."""


class TeacherError(EelibError):
    """Teacher outputs cannot be cached: no disk space."""


class FetchError(EelibError):
    """Failed or corrupt download, or no disk space for it."""


class DiskFullError(EelibError, OSError):
    """No room on a disk: names the folder and what is missing."""


class UnsupportedError(EelibError):
    """Generation option of transformers that this engine does not support."""


class BatchError(EelibError):
    """Failed notebook, or a second batch in the same workspace."""


class MissingExtraError(EelibError, ImportError):
    """Optional dependency that is not installed."""
