"""``python -m daxfs.testing``."""

from daxfs.testing.commands.main import main

main(prog_name="scripts/crash-test")
