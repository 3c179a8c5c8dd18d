"""Everything that decisions rest on, in memory. Pure."""

from __future__ import annotations

import dataclasses

from services.auth.domain.devices import Devices
from services.auth.domain.resources import ChangeSet, Resources
from services.auth.domain.revocations import Revocations


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """What exists and what was revoked. Owned by one event loop; only the stores change it."""

    resources: Resources = dataclasses.field(default_factory=Resources)
    revocations: Revocations = dataclasses.field(default_factory=Revocations)
    devices: Devices = dataclasses.field(default_factory=Devices)

    def snapshot(self) -> ChangeSet:
        """Return all that edges see, as additions."""
        changes = self.resources.snapshot()
        changes.revoked_token_ids.extend(self.revocations.ids())
        return changes
