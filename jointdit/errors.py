"""Every error a user can meet.

    JointDiTError (Exception)
    ├── PermanentError          doing it again gives the same answer: stop, name the field and the fix
    │   ├── SpecError           the job or training spec (also a ValueError)
    │   ├── InputError          the input files, their columns, their rows (also a ValueError)
    │   ├── ModelError          a checkpoint or an adapter that does not fit (also a ValueError)
    │   └── StoreError          bucket missing, no access, a disk that is full, a store without create-only writes
    └── RowError                one row is bad: it is quarantined alone, its neighbours go on (also a ValueError)

The engine adds TransientError (pipelines/store/errors.py) and Unfinished (pipelines/ledger/entries.py).

A message is one sentence: the field or file, what was found, what to do. The command line prints it and exits with 1;
a traceback appears with `--debug` only.
"""

from __future__ import annotations


class JointDiTError(Exception):
    """Root of this project's errors."""


class PermanentError(JointDiTError):
    """Trying again gives the same answer."""


class SpecError(PermanentError, ValueError):
    """A spec field is missing, unknown, or has an impossible value."""


class InputError(PermanentError, ValueError):
    """The input as a whole cannot be used: no rows, a missing column, duplicate ids."""


class ModelError(PermanentError, ValueError):
    """A checkpoint is missing, of another size, or in a format that is not loaded (pickle)."""


class StoreError(PermanentError):
    """The object store refuses for good: missing bucket, no access, no create-only write."""


class RowError(JointDiTError, ValueError):
    """One row cannot be used; it goes to quarantine and its neighbours go on."""
