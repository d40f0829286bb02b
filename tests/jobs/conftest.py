from tests.local_job import LocalJob, make_job

__all__ = ["LocalJob", "make_job"]
