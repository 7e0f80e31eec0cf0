"""What a process does that dies at once; imports nothing, since every one of them imports it."""

import os
import signal


def die(*_: object) -> None:
    """Ends the process as the out-of-memory killer would."""
    os.kill(os.getpid(), signal.SIGKILL)
