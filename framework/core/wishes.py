"""What a wanted fleet may be, beyond its numbers: roles, disk, constraints; and which volumes it leaves without use."""

from __future__ import annotations

import re

from stoker.executor.units import format_bytes
from stoker.framework.core import entries as e
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.constraints import problems_of
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.leftovers import is_away
from stoker.framework.core.programs import parse_program
from stoker.framework.core.volumes import VolumeState
from stoker.framework.model import FleetSpec, Refusal, Settings

ROLE = re.compile(r"\*|[^\s/*.-][^\s*]*")
ROLE_RULE = "a Mesos role, such as * or cache/training"
ROLES_MAX = 16


def problem_of_wish(spec: FleetSpec, settings: Settings) -> tuple[str, str]:
    """Return what is wrong with a spec's roles, disk, executor or constraints, and what is allowed; two empty texts: nothing."""
    bad = [role for role in spec.roles if not ROLE.fullmatch(role) or len(role.encode()) > 255]
    if bad:
        return f"the role is {bad[0]!r}", ROLE_RULE
    if len(set(spec.roles)) != len(spec.roles) or len(spec.roles) > ROLES_MAX:
        return f"the roles are {', '.join(spec.roles)}", f"at most {ROLES_MAX}, each once"
    least, most = settings.executor_disk_bytes_min, settings.executor_disk_bytes_max
    if spec.disk_bytes and not least <= spec.disk_bytes <= most:
        return (
            f"disk_bytes is {spec.disk_bytes}",
            f"0 (no SSD tier), or {format_bytes(least)} to {format_bytes(most)}, an executor",
        )
    if spec.disk_bytes and "*" in spec.roles:
        return (
            "an SSD tier is kept on reserved disk, and Mesos reserves nothing for the role *",
            "give the fleet a role of its own (--role stoker), or leave the disk out",
        )
    try:
        parse_program(spec.executor)
    except ValueError as error:
        return str(error), "see `stoker fleet set --help`"
    problems = problems_of(spec.constraints)
    return ("; ".join(problems), "see `stoker fleet set --help` for constraints") if problems else ("", "")


def wish_refusal(catalog: Catalog, fleet: Fleet, spec: FleetSpec, settings: Settings) -> Refusal | None:
    """Return why the fleet cannot become this, if it cannot."""
    message, hint = problem_of_wish(spec, settings)
    if message:
        return Refusal(400, "bad_request", message, hint)
    stranded: dict[str, int] = {}
    for volume in catalog.volumes.values():
        is_lost = volume.state is VolumeState.DOOMED and is_away(fleet, volume)
        if volume.role not in spec.roles and not is_lost:
            stranded[volume.role] = stranded.get(volume.role, 0) + 1
    for role, count in stranded.items():
        return Refusal(
            409,
            "role_in_use",
            f"{count} volumes are reserved for the role {role!r}, which Mesos would not offer any more",
            f"keep it as a further role (--role NEW --role {role}), or set the disk to 0 first",
        )
    return None


def unwanted_volumes(catalog: Catalog, spec: FleetSpec, wall_ms: int) -> list[e.Entry]:
    """Return what dooms the volumes that the fleet, as somebody set it, has no use for; one that is in use is not doomed yet."""
    if spec.disk_bytes == 0:
        reason = "the fleet was set to have no SSD tier"
    elif spec.instances == 0:
        reason = "the fleet was set to 0 instances"
    else:
        reason = f"the fleet was set to {format_bytes(spec.disk_bytes)} of SSD tier an executor"
    return [
        e.VolumeDoomed(volume.volume_id, reason, wall_ms)
        for volume in catalog.volumes.values()
        if volume.state is not VolumeState.DOOMED
        and (volume.disk_bytes != spec.disk_bytes or spec.instances == 0)
        and (volume.slot_id not in catalog.slots or not catalog.slots[volume.slot_id].launch_id)
    ]
