"""Errors of the engine that are worth another try.

JointDiTError (jointdit.errors)
└── TransientError          another try may succeed: the driver retries the shard, within its own budget
    ├── CommitFailed        the commit did not land
    └── CommitUnknown       the commit may have landed: the driver reads it back
"""

from __future__ import annotations

from jointdit.errors import JointDiTError


class TransientError(JointDiTError):
    """Another try may succeed: a lost actor, a 5xx answer, a timeout, a throttle."""


class CommitFailed(TransientError):
    """The commit did not land."""


class CommitUnknown(TransientError):
    """The answer of the store does not tell whether the commit landed."""
