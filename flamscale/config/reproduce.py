"""Which of the paper's tables to make, at what cost, and where."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """A table, a budget, and the places it reads and writes."""

    table: Literal["prediction", "dci", "factors", "entities", "ablations", "policy"]
    """prediction: ten steps; dci: slots against entities; factors: K; entities: agents; policy: behaviour cloning."""
    budget: Literal["smoke", "hour", "full"] = "smoke"
    """smoke: tiny; hour: the quickstart's settings, shortened; full: the paper's."""
    data: str
    """Folder or URL of the simulated data sets, made where missing."""
    out: str
    """Folder of the runs of all tables at one budget, and of the tables."""
    lpips_weights: str = ""
    """File of LPIPS weights (.safetensors), made by recipes/convert_lpips.py; empty leaves LPIPS out."""
    fvd_weights: str = ""
    """File of I3D weights (.safetensors), made by recipes/convert_i3d.py; empty leaves FVD out."""
