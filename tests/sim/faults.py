"""How much goes wrong in a simulated world."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Faults:
    """Chances a second unless told; the defaults are a bad day."""

    message_loss: float = 0.05  # a message
    message_twice: float = 0.05
    message_late: float = 0.01  # by up to `late_ms_max`, past whatever happens meanwhile
    delay_ms_max: int = 300
    late_ms_max: int = 15_000
    executor_dies: float = 0.01  # an executor
    executor_hangs: float = 0.005
    agent_dies: float = 0.003  # an agent
    agent_cut: float = 0.003  # from the master, and from us half the time; its executors live on
    maintenance: float = 0.003  # Mesos asks for an agent, and gets it back some time later
    drains: float = 0.04  # or the undoing of one, of some agent
    agent_restarts: float = 0.003  # its process alone
    operation_fails: float = 0.05  # a CREATE, or an UNRESERVE
    master_goes: float = 0.01  # its connections break
    master_fails: float = 0.002  # another one leads, which knows the agents or not even those
    users: float = 0.4  # requests
    scheduler_killed: float = 0.01  # a scheduler
    scheduler_stopped: float = 0.01
    scheduler_cut: float = 0.01  # from ZooKeeper
    scheduler_ended: float = 0.003  # SIGTERM
    session_expired: float = 0.004
    scheduler_unseated: float = 0.004  # its election node is deleted
    clock_jump: float = 0.02  # of the wall clock
    server_killed: float = 0.004  # a ZooKeeper server
    server_stopped: float = 0.004
    server_isolated: float = 0.006
    server_lags: float = 0.01
    down_ms_max: int = 15_000  # how long any of it lasts
    doubt: float = 0.02  # an append whose connection ends around it

    @classmethod
    def none(cls) -> Faults:
        return cls(
            message_loss=0, message_twice=0, message_late=0, delay_ms_max=20, executor_dies=0, executor_hangs=0,
            agent_dies=0, agent_cut=0, agent_restarts=0, maintenance=0, drains=0, operation_fails=0, master_goes=0, master_fails=0, users=0, scheduler_killed=0, scheduler_stopped=0, scheduler_cut=0,
            scheduler_ended=0, session_expired=0, scheduler_unseated=0, clock_jump=0, server_killed=0, server_stopped=0,
            server_isolated=0, server_lags=0, doubt=0,
        )  # fmt: skip

    @classmethod
    def of_leaders(cls) -> Faults:
        """Executors and agents are well; everything between the schedulers goes wrong, often."""
        return cls(
            executor_dies=0.002, executor_hangs=0, agent_dies=0, agent_cut=0, agent_restarts=0, maintenance=0, drains=0, operation_fails=0, master_goes=0.01, master_fails=0, users=1.5, scheduler_killed=0.03,
            scheduler_stopped=0.04, scheduler_cut=0.03, scheduler_ended=0.01, session_expired=0.01,
            scheduler_unseated=0.02, doubt=0.1,
        )  # fmt: skip
