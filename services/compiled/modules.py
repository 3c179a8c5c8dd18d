"""The hot path: what runs for each message. Everything else is read from its source."""

from __future__ import annotations

import ast
from pathlib import Path

MODULES = (
    "services.auth.attempts",
    "services.auth.domain.backoff",
    "services.auth.domain.credentials",
    "services.auth.domain.names",
    "services.auth.domain.resources",
    "services.auth.domain.signatures",
    "services.common.log_lanes",
    "services.common.log_lines",
    "services.common.log_queue",
    "services.common.log_runs",
    "services.common.log_wire",
    "services.common.log_writer",
    "services.common.qos0_window",
    "services.common.subjects",
    "services.common.topics",
    "services.common.trie",
    "services.common.utf8",
    "services.edge.arrivals",
    "services.edge.attempts",
    "services.edge.channel_ids",
    "services.edge.columns",
    "services.edge.commands",
    "services.edge.connection",
    "services.edge.credentials",
    "services.edge.entrance",
    "services.edge.flow",
    "services.edge.hub",
    "services.edge.lanes",
    "services.edge.local_delivery",
    "services.edge.mqtt.*",
    "services.edge.openings",
    "services.edge.pace",
    "services.edge.policies",
    "services.edge.policy",
    "services.edge.ports",
    "services.edge.pulse",
    "services.edge.returns",
    "services.edge.receipts",
    "services.edge.roster",
    "services.edge.router_link",
    "services.edge.sequences",
    "services.edge.session_codec",
    "services.edge.session_link",
    "services.edge.routes",
    "services.edge.short_way",
    "services.edge.stall",
    "services.edge.subscriptions",
    "services.edge.throttle",
    "services.edge.tokens",
    "services.edge.transports.strangers",
    "services.edge.wire",
    "services.router.delivery",
    "services.router.delivery_batch",
    "services.router.domain.*",
    "services.router.edge_link",
    "services.router.flooding",
    "services.router.interests",
    "services.router.log_reports",
    "services.router.pressure",
    "services.router.publication",
    "services.router.queries",
    "services.router.router",
    "services.router.runs",
    "services.router.shares",
    "services.session.admission",
    "services.session.domain.*",
    "services.session.edge_link",
    "services.session.event_log",
    "services.session.frames",
    "services.session.hub",
)
"""Names of modules; `.*` stands for all modules of a package."""


def sources(root: Path) -> list[Path]:
    """Return the source files of the hot path: those of `MODULES`, and of classes derived from theirs or the reverse.

    A class in machine code and one that is interpreted can't inherit from each other.

    Raises:
        FileNotFoundError: a module does not exist.
    """
    found: set[Path] = set()
    for name in MODULES:
        path = root.joinpath(*name.removesuffix(".*").split("."))
        if name.endswith(".*"):
            found.update(each for each in path.glob("*.py") if each.name != "__init__.py")
        else:
            found.add(path.with_suffix(".py"))
    for file in found:
        file.stat()
    pairs = [(file, base) for file in sorted(root.glob("services/*/**/*.py")) for base in _bases(file, root)]
    while added := {each for pair in pairs if found & set(pair) for each in pair} - found:
        found |= added
    return sorted(found)


def _bases(file: Path, root: Path) -> set[Path]:
    """Return the sources of our modules that define base classes of the classes in `file`."""
    tree = ast.parse(file.read_bytes())
    origins: dict[str, Path] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("services."):
            path = root.joinpath(*node.module.split(".")).with_suffix(".py")
            origins.update({alias.asname or alias.name: path for alias in node.names})
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    names = {base.id for node in classes for base in node.bases if isinstance(base, ast.Name)}
    return {path for name, path in origins.items() if name in names and path.exists()}
