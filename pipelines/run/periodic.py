"""Publish what is committed at intervals while a run generates shards (output.publish_every).

It is done on a thread of its own with a ledger of its own, so the driver goes on dispatching. Publications may run side
by side (dataset/publish.py), and one that is interrupted has published nothing.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from jointdit.errors import JointDiTError
from pipelines.dataset import about
from pipelines.dataset.garbage import prune_versions
from pipelines.dataset.publish import publish_committed
from pipelines.engine.progress import Progress
from pipelines.ledger.ledger import Ledger
from pipelines.run.notify import message_of, notify, webhook_of
from pipelines.spec.job import JobSpec
from pipelines.store.storage import Storage

STOP_SECONDS = 10.0  # for a publication under way when the run fails; the next run publishes again


class PeriodicPublisher:
    """Publishes each time the interval of the spec has passed, as long as a block runs. Without one it does nothing."""

    def __init__(self, storage: Storage, spec: JobSpec, progress: Progress) -> None:
        self.storage, self.spec, self.progress = storage, spec, progress
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publish", daemon=True)

    def __enter__(self) -> Self:
        if self.spec.output.publish_seconds is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(None if error is None else STOP_SECONDS)

    def _run(self) -> None:
        while not self._stop.wait(self.spec.output.publish_seconds):
            try:
                self.publish()
            except (JointDiTError, OSError) as error:
                again = f"it is tried again after {self.spec.output.publish_every}"
                self.progress.note(f"no version was published while the run goes on; {again}: {error}")

    def publish(self) -> None:
        """Publish what is committed by now, if it is more than the latest version has, and describe it."""
        ledger = Ledger(self.storage)
        version, is_new = publish_committed(self.storage, ledger, self.spec)
        if version is None or not is_new:
            return
        counts = ", ".join(f"{count} {outcome}" for outcome, count in version.counts.items())
        left = f"; {version.left_out} planned samples are left out" if version.is_partial else ""
        self.progress.note(f"version {version.number} published while the run goes on: {counts}{left}.")
        about.refresh(self.storage, ledger)
        if self.spec.output.retain_versions is not None:
            prune_versions(self.storage, self.spec.output.retain_versions)
        if webhook := webhook_of(self.spec.notify):
            notify(webhook, message_of(self.spec.name, self.storage.uri, version))
