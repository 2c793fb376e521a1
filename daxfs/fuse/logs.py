"""Where the log of a mount goes."""

import logging
import os
from pathlib import Path
from typing import Final

LOG_HELP: Final = (
    "The log goes to stderr in the foreground, else to /var/log/daxfs.log for root and to "
    "$XDG_STATE_HOME/daxfs/daxfs.log (~/.local/state/daxfs/daxfs.log) for other users."
)


def log_path() -> Path:
    """The log file of daemons of this user."""
    if os.geteuid() == 0:
        return Path("/var/log/daxfs.log")
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return folder / "daxfs" / "daxfs.log"


def start_logging() -> None:
    """Send the log of this process to stderr."""
    logging.basicConfig(
        format="%(asctime)s daxfs[%(process)d] %(levelname)s: %(message)s", level=logging.WARNING
    )
    # Without descriptors it tells of each try to accept a client, ten times a second.
    logging.getLogger("trio.serve_listeners").setLevel(logging.CRITICAL)
