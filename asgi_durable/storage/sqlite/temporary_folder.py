"""A folder for files that nobody needs once their user is gone."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

__all__ = ["TemporaryFolder"]


class TemporaryFolder:
    """A new folder; deleted on request, else with this object or at the end of the process."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="asgi-durable-"))
        # Not `TemporaryDirectory`: it warns where nobody asks for the deletion, as after a
        # test client that runs no lifespan.
        self._finalizer = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def delete(self) -> None:
        """Delete the folder, unless that has been done."""
        self._finalizer()
