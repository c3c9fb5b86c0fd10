"""Which code this is."""

import hashlib
from importlib import metadata
from pathlib import Path


def code_version() -> dict[str, str]:
    """The version of the distribution and one digest over the sources of this package."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return {"version": metadata.version("kfp-vision"), "sources_sha256": digest.hexdigest()}
