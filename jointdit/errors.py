"""The library's errors.

    JointDiTError (Exception)
    ├── PermanentError          a retry fails in the same way
    │   ├── SpecError           the job or training spec is invalid (also a ValueError)
    │   ├── InputError          input files, columns or rows cannot be used (also a ValueError)
    │   ├── ModelError          a checkpoint or an adapter does not fit (also a ValueError)
    │   └── StoreError          bucket missing, no access, disk full, or no create-only writes
    └── RowError                one row cannot be used and is quarantined (also a ValueError)

The engine adds TransientError (pipelines/store/errors.py) and Unfinished (pipelines/ledger/entries.py).

A message is one sentence: the field or file, what was found, what to do. The command line prints it and exits with
code 1; it shows a traceback only with `--debug`.
"""

from __future__ import annotations


class JointDiTError(Exception):
    """Root of this project's errors."""


class PermanentError(JointDiTError):
    """A retry fails in the same way."""


class SpecError(PermanentError, ValueError):
    """A field of a spec is missing, unknown, or has an invalid value."""


class InputError(PermanentError, ValueError):
    """The input as a whole cannot be used: no rows, a missing column, duplicate ids."""


class ModelError(PermanentError, ValueError):
    """A checkpoint is missing, has other shapes than expected, or is in a format that is not loaded (pickle)."""


class StoreError(PermanentError):
    """The object store refuses permanently: missing bucket, no access, no create-only write."""


class RowError(JointDiTError, ValueError):
    """One row cannot be used. It is quarantined and the other rows continue."""
