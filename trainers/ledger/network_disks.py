"""Whether a path lies on a disk of another machine, where SQLite must not be shared."""

from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
# File systems that several machines see at once. https://www.sqlite.org/wal.html: "WAL does not
# work over a network filesystem".
NETWORKS = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.juicefs",
    "fuse.mfs", "fuse.s3fs", "fuse.sshfs", "fuse.weka", "glusterfs", "gpfs", "lustre", "nfs",
    "nfs4", "ocfs2", "orangefs", "panfs", "smb3", "smbfs", "virtiofs", "vboxsf", "wekafs",
})  # fmt: skip
ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))


def network_disk(path: Path) -> str | None:
    """The kind of network file system that a path lies on (it need not exist yet).

    None on a local disk, and where the system does not tell (no ``/proc``).
    """
    try:
        lines = MOUNTS.read_text().splitlines()
    except OSError:
        return None
    wanted = path.absolute().resolve()
    best, kind = 0, None
    for line in lines:
        _, point, found, *_ = line.split(" ")
        for escape, character in ESCAPES:
            point = point.replace(escape, character)
        if wanted.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), found
    return kind if kind in NETWORKS else None
