"""The `kdmarl` command: the core's commands, and those that fly."""

from kdmarl_core.cli.common import run
from kdmarl_core.cli.main import make_parser


def main(argv: list[str] | None = None) -> int:
    """Parse and run; returns the exit code."""
    from kdmarl_ros.cli import demo, keystore, replay, swarm

    parser, commands = make_parser()
    for module in (swarm, demo, replay, keystore):
        module.add_command(commands)
    arguments = parser.parse_args(argv)
    return run(arguments.command, arguments)
