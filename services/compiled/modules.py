"""The hot path: what runs for each message. Everything else is read from its source."""

from __future__ import annotations

from pathlib import Path

MODULES = (
    "services.common.subjects",
    "services.common.topics",
    "services.common.trie",
    "services.edge.commands",
    "services.edge.connection",
    "services.edge.hub",
    "services.edge.mqtt.*",
    "services.edge.persistent",
    "services.edge.policy",
    "services.edge.ports",
    "services.edge.returns",
    "services.edge.router_link",
    "services.edge.session_link",
    "services.edge.shared",
    "services.edge.stall",
    "services.edge.subscriptions",
    "services.edge.tokens",
    "services.router.domain.*",
    "services.router.edge_link",
    "services.router.queries",
    "services.router.router",
)
"""Names of modules; `.*` stands for all modules of a package. What a class here derives from must be here, too."""


def sources(root: Path) -> list[Path]:
    """Return the source files of all of them.

    Raises:
        FileNotFoundError: a module does not exist.
    """
    found: list[Path] = []
    for name in MODULES:
        path = root.joinpath(*name.removesuffix(".*").split("."))
        if name.endswith(".*"):
            found.extend(sorted(each for each in path.glob("*.py") if each.name != "__init__.py"))
        else:
            found.append(path.with_suffix(".py"))
    for file in found:
        file.stat()
    return found
