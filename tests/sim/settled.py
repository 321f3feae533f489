"""What must be so once nothing has gone wrong for a while."""

from __future__ import annotations

from sim.world import World
from stoker.framework.core.invariants import check
from stoker.framework.core.progress import job_progress

SETTLE_MS = 150_000


def run(world: World, duration_ms: int, settle_ms: int = SETTLE_MS) -> World:
    """Let everything go wrong for a while, then nothing, and check what is then. A failure tells the story."""
    world.run(duration_ms)
    world.settle(settle_ms)
    try:
        check_settled(world)
    except AssertionError as error:
        error.add_note(world.describe())
        raise
    return world


def check_settled(world: World) -> None:
    _check_schedulers(world)
    catalog, fleet, mesos = world.leader.catalog, world.leader.fleet, world.mesos
    check(catalog, fleet)
    assert catalog.fleet is not None
    assert len(catalog.slots) == catalog.fleet.instances
    running = [slot for slot in catalog.slots.values() if slot.launch_id in fleet.executors]
    usable = [i for i in mesos.agents if i not in catalog.drains]
    assert len(running) == min(catalog.fleet.instances, len(usable)), "an executor is missing"
    causes = {drain.cause for drain in catalog.drains.values()}
    assert causes <= {"operator"}, "a drain outlives the maintenance that caused it"
    alive = mesos.living_tasks()
    promised = {launch.task_id for launch in catalog.launches.values()}
    assert alive == promised, f"tasks nobody wants: {alive - promised}; missing: {promised - alive}"
    sizes = {(x.launch.mem_bytes, x.launch.disk_bytes) for x in mesos.executors.values()}
    assert sizes <= {(catalog.fleet.mem_bytes, catalog.fleet.disk_bytes)}, sizes
    if len(running) == catalog.fleet.instances:
        assert fleet.suppressed, "offers are still wanted"
    assert fleet.residency_complete and not fleet.unanswered and not fleet.endings
    assert not any(dataset.is_listing for dataset in catalog.datasets.values())
    mesos.disks.check_settled(mesos.estates(), mesos.volumes_in_use())
    _check_executors(world)
    drains = [job for job in catalog.active_jobs() if job.kind == "drain"]
    assert not drains, f"drains are not over: {drains}"
    if len(running) == catalog.fleet.instances:
        for job in catalog.active_jobs():
            raise AssertionError(f"{job} is not over: {job_progress(catalog, fleet, job)}")


def _check_schedulers(world: World) -> None:
    """One leads, the others have its state and say where it is; Mesos knows one framework."""
    leader, truth = world.leader, world.truth
    assert leader.epoch == leader.catalog.epoch == truth.epoch
    assert leader.catalog.snapshot() == truth.catalog.snapshot(), "the leader's state is not the journal's"
    assert truth.catalog.framework_id == world.mesos.framework_id
    members = set()
    for scheduler in world.schedulers:
        assert scheduler.home is not None
        members.add(scheduler.home.members())
        if not scheduler.is_leading:
            replica = scheduler.replica
            assert replica.next_index == truth.next_index, f"{scheduler.name} is behind"
            assert replica.catalog.snapshot() == truth.catalog.snapshot(), (
                f"{scheduler.name} has another state"
            )
    (order,) = members
    assert sorted(order) == sorted(s.url for s in world.schedulers)
    assert next(s for s in world.schedulers if s.is_leading).url == order[0]


def _check_executors(world: World) -> None:
    catalog, fleet = world.leader.catalog, world.leader.fleet
    for executor in world.mesos.executors.values():
        assert executor.assignment is not None
        assert executor.schedulers == world.schedulers[0].home.members()  # type: ignore[union-attr]
        names = {d.name for d in executor.assignment.datasets}
        assert names == {d.name for d in catalog.datasets.values() if d.current}
        assert (executor.assignment.epoch, executor.assignment.placement_version) == (
            catalog.epoch,
            catalog.placement_version,
        )
        for key, held in executor.held.items():
            seen = fleet.executors[executor.launch.launch_id]
            bits = {
                i
                for i in range(8 * len(seen.datasets[key].bitmap))
                if seen.datasets[key].bitmap[i >> 3] >> (i & 7) & 1
            }
            assert bits == held, "the leader believes other blocks are there"
