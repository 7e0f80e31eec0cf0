"""Each peer in a virtual environment of its own, which sees this one's packages behind its own."""

import os
import site
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent
_ROOT = _FOLDER.parents[1]
_INSTALL_TIMEOUT_S = 600


@dataclass(frozen=True)
class Contestant:
    """One loader."""

    module: str
    """Its module in this folder."""
    form: str
    """Form of the data it reads: tar, mds or litdata."""
    packages: tuple[str, ...] = ()
    """Pinned packages, installed without dependencies; what torch-free parts they need is named too."""
    copies: bool = False
    """Whether it keeps local copies of what lies in an object store."""


OURS = Contestant("ours", "tar", copies=True)
BARE = Contestant("bare", "tar")
BARE_NUMPY = Contestant("bare_numpy", "tar")
PEERS = {
    "webdataset": Contestant("webdataset_peer", "tar", ("webdataset==1.0.2",)),
    "streaming": Contestant(
        "streaming_peer",
        "mds",
        (
            "mosaicml-streaming==0.13.0",
            "Brotli==1.2.1",
            "python-snappy==0.7.3",
            "cramjam==2.14.0",
            "zstd==1.5.7.2",
            "xxhash==4.1.0",
            "catalogue==2.0.10",
            "torchvision==0.28.0",
        ),
        copies=True,
    ),
    "litdata": Contestant("litdata_peer", "litdata", ("litdata==0.2.76",), copies=True),
}


def make(folder: Path, contestant: Contestant) -> tuple[str, str]:
    """Returns the Python of a peer's environment and why it cannot be had (nothing, if it can)."""
    if not contestant.packages:
        return sys.executable, ""
    home = folder / contestant.module
    python = str(home / "bin" / "python")
    try:
        if not (home / "made").exists():
            _call([sys.executable, "-m", "venv", str(home)])
            _call([python, "-m", "pip", "install", "--quiet", "--no-deps", *contestant.packages])
            found = subprocess.run(
                [python, "-c", "import site; print(site.getsitepackages()[0])"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
            (Path(found) / "behind.pth").write_text("\n".join(site.getsitepackages()) + "\n")
            _call([python, "-c", f"import {contestant.module}"])
            (home / "made").touch()
    except subprocess.CalledProcessError as error:
        return python, f"not available: {error.stderr.strip().splitlines()[-1][:200]}"
    return python, ""


def environment() -> dict[str, str]:
    """Returns the environment variables of every contestant: this source tree first, one thread for each process."""
    return os.environ | {"PYTHONPATH": f"{_FOLDER}:{_ROOT}", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def _call(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, env=environment(), timeout=_INSTALL_TIMEOUT_S)
