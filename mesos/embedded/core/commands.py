"""Tasks that bring a command and no executor: the ExecutorInfo that an agent makes up for them, and what it adds of its own.

The master knows nothing of such an executor: it charges what the task takes, and hears no FAILURE when it ends.
"""

from __future__ import annotations

from stoker.mesos.embedded.core.codec import Message

SHOWN_MAX = 15  # characters of a command in its executor's name

# What an agent adds for the executor itself; nobody is charged for it.
_OWN = (("cpus", 0.1), ("mem", 32.0))


def command_executor(task: Message, framework_id: str, program: tuple[str, ...]) -> Message:
    """Return the ExecutorInfo of a command task's executor, which runs `program`; its id is the task's."""
    task_id = task["task_id"]["value"]
    command = task["command"]
    return {
        "type": "CUSTOM",
        "executor_id": {"value": task_id},
        "framework_id": {"value": framework_id},
        "name": f"Command Executor (Task: {task_id}) (Command: {_shown(command)})",
        "source": task_id,
        "command": _running(program, command),
        "resources": [{"name": name, "type": "SCALAR", "scalar": {"value": value}} for name, value in _OWN],
    }


def default_executor_command(executor: Message, program: tuple[str, ...]) -> Message:
    """Return the CommandInfo that runs the executor of a task group."""
    return _running((*program, "--group"), executor.get("command", {}))


def _running(program: tuple[str, ...], command: Message) -> Message:
    """Return a CommandInfo that runs `program` where `command` asks to run: same user, same files, same variables."""
    result: Message = {"shell": False, "value": program[0], "arguments": list(program)}
    return result | {key: command[key] for key in ("environment", "uris", "user") if key in command}


def _shown(command: Message) -> str:
    if command.get("shell", True):
        text = command.get("value", "")
        return f"sh -c '{text}'" if len(text) <= SHOWN_MAX else f"sh -c '{text[: SHOWN_MAX - 3]}...'"
    text = " ".join(command.get("arguments") or [command.get("value", "")])
    return text if len(text) <= SHOWN_MAX else f"{text[: SHOWN_MAX - 3]}..."
