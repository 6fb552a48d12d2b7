"""Under which keys the objects of a job are stored.

::

    <job>/pointer.json                                          what is committed; the only object ever replaced
    <job>/manifests/<step>-<fence>-<digest>.json                one per checkpoint
    <job>/shards/<step>-<fence>-<rank>of<world>-<digest>.safetensors
    <job>/records/<fence>/<step>/<rank>of<world>.json           what each writer wrote, until the commit
    <job>/gc/<id>.json                                          what a garbage collection is about to delete

All but the pointer are immutable and named by their content, so that a retry writes the same bytes again, two writers
never overwrite each other, and a name found by LIST can be checked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from checkpointing.errors import ForeignObject, InvalidName

_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=+@-]{0,99}")
_MANIFEST = re.compile(r"(\d{12,})-([0-9a-f]{16})-([0-9a-f]{32})\.json")


def validate_job(job: str) -> str:
    """Return the job's name if it can be one segment of a key in every store.

    Raises:
        InvalidName: It is empty, too long, begins with a dot, or has a character that is not allowed.
    """
    if not _JOB.fullmatch(job):
        raise InvalidName(
            job, "use 1 to 100 letters, digits and '_.=+@-', beginning with a letter or digit (no '/', no '..')"
        )
    return job


@dataclass(frozen=True, slots=True)
class ManifestName:
    """What the name of a manifest says."""

    step: int
    fence: int
    digest: str


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one job."""

    job: str

    @property
    def pointer(self) -> str:
        """Return the key of the pointer."""
        return f"{self.job}/pointer.json"

    @property
    def manifests(self) -> str:
        """Return the prefix of all manifests."""
        return f"{self.job}/manifests/"

    @property
    def shards(self) -> str:
        """Return the prefix of all shard files."""
        return f"{self.job}/shards/"

    @property
    def records(self) -> str:
        """Return the prefix of all shard records."""
        return f"{self.job}/records/"

    @property
    def collections(self) -> str:
        """Return the prefix of what garbage collections condemn."""
        return f"{self.job}/gc/"

    def manifest(self, name: ManifestName) -> str:
        """Return the key of a manifest."""
        return f"{self.manifests}{name.step:012d}-{name.fence:016x}-{name.digest}.json"

    def parse_manifest(self, key: str) -> ManifestName:
        """Return what the key of a manifest says.

        Raises:
            ForeignObject: The key is not a manifest's.
        """
        found = _MANIFEST.fullmatch(key.removeprefix(self.manifests)) if key.startswith(self.manifests) else None
        if found is None:
            raise ForeignObject(key, f"manifests of this job are named {self.manifests}<step>-<fence>-<digest>.json")
        return ManifestName(step=int(found[1]), fence=int(found[2], 16), digest=found[3])

    def shard(self, name: ManifestName, rank: int, world_size: int) -> str:
        """Return the key of a shard file; `name.digest` is that of the file."""
        return f"{self.shards}{name.step:012d}-{name.fence:016x}-{rank}of{world_size}-{name.digest}.safetensors"

    def record(self, fence: int, step: int, rank: int, world_size: int) -> str:
        """Return the key under which a writer records what it wrote."""
        return f"{self.records}{fence:016x}/{step:012d}/{rank}of{world_size}.json"

    def condemned(self, collection_id: str) -> str:
        """Return the key under which a garbage collection says what it is about to delete."""
        return f"{self.collections}{collection_id}.json"
