"""For the generator alone: the package's rooms under one folder named `groundup`, where it looks for docstrings.

The repository's root is the package, and a search of the root would also walk through environments and runs.
"""

import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

ROOT = Path(__file__).resolve().parent.parent


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: Any) -> Any:
    """Point the reference's collector at links to the rooms."""
    place = tempfile.TemporaryDirectory(prefix="groundup-docs-")
    config["groundup_place"] = place  # removed when the build's configuration is
    package = Path(place.name) / "groundup"
    package.mkdir()
    rooms = [path.parent for path in ROOT.glob("*/__init__.py")]
    for path in [*rooms, ROOT / "__init__.py", ROOT / "hub_upload.py"]:
        (package / path.name).symlink_to(path)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [place.name]
    return config
