"""What all packets and events have in common."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override


class PacketBase:
    """Equality and representation by the attributes that `fields` names."""

    __slots__ = ()

    fields: ClassVar[tuple[str, ...]] = ()

    @override
    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return False
        return all(getattr(self, name) == getattr(other, name) for name in self.fields)

    # Values that compare by content and may change have no hash.
    __hash__ = None  # type: ignore[assignment]  # the documented way to say unhashable

    @override
    def __repr__(self) -> str:
        shown = []
        for name in self.fields:
            value = getattr(self, name)
            if name == "password" and value is not None:
                shown.append("password=***")
            elif isinstance(value, bytes):
                shown.append(f"{name}=<{len(value)} bytes>")
            else:
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"
