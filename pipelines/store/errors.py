"""Errors that a retry may resolve.

JointDiTError (jointdit.errors)
└── TransientError          a retry may succeed: the driver retries the shard, within its own budget
    ├── CommitFailed        the commit did not land
    └── CommitUnknown       the commit may have landed: the driver reads it back
"""

from __future__ import annotations

from jointdit.errors import JointDiTError


class TransientError(JointDiTError):
    """A retry may succeed: a lost actor, a 5xx answer, a timeout, throttling."""


class CommitFailed(TransientError):
    """The commit did not land."""


class CommitUnknown(TransientError):
    """The store's answer does not say whether the commit landed."""
