"""How many CPUs this process may use: its affinity, and the quota of its control groups (containers have one)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
SELF = Path("/proc/self/cgroup")


@lru_cache(maxsize=1)
def available_cpus() -> int:
    """Return the number of CPUs that this process may use at once, at least 1."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        count = os.cpu_count() or 1
    quota = cpu_quota()
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def cpu_quota(cgroups: Path = CGROUPS, own: Path = SELF) -> float | None:
    """Return the CPUs that the control groups of this process allow it on average, or None if they do not say.

    Both versions of Linux' control groups are read; a group has no more than the groups that it is in.

    Parameters
    ----------
    cgroups : Path
        Where they are mounted.
    own : Path
        The file that lists this process's groups, ``hierarchy:controllers:path`` on each line.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":  # version 2
            quotas += [_quota_v2(folder) for folder in _with_parents(cgroups, path)]
        elif "cpu" in controllers.split(","):
            for mount in (cgroups / "cpu", cgroups / controllers):
                quotas += [_quota_v1(folder) for folder in _with_parents(mount, path)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _with_parents(mount: Path, path: str) -> Iterator[Path]:
    """Yield the folders of a group and of those that it is in; inside a container all but the mount may be missing."""
    inside = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    for n in range(len(inside), -1, -1):
        yield mount.joinpath(*inside[:n])


def _quota_v2(folder: Path) -> float | None:
    return _ratio(_read(folder / "cpu.max").split())  # "max 100000" or "200000 100000"


def _quota_v1(folder: Path) -> float | None:
    return _ratio([_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")])  # no quota is -1


def _ratio(numbers: list[str]) -> float | None:
    try:
        quota, period = map(int, numbers)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
