"""What the paper reports (arXiv 2602.16229): a data set and a row in; its numbers out, where there are any."""

from dataclasses import dataclass

from flamscale.reproduce.variants import with_beta, with_slots

AVERAGE, NUPLAN = "average of five data sets", "nuPlan"
"""Data sets of the paper that no row of ours is of."""
PAPER_SETTING = "128 x 128 pixels and K = 4 on MultiGrid, 224 x 224 and K = 16 on the others; D = 256"
_MULTIGRID = "MultiGrid, 4 agents"


@dataclass(frozen=True, kw_only=True)
class Reported:
    """One row of the paper's on one data set."""

    source: str
    """Where in the paper."""
    data: str
    row: str
    """Name of the variant, or of what stands beside the models."""
    values: dict[str, float]
    """By the metric's name."""


def _prediction(data: str, row: str, psnr: float, *others: float) -> Reported:
    """Of the comparison of ten-step predictions; the others are SSIM, LPIPS and FVD."""
    values = {"psnr": psnr, **dict(zip(("ssim", "lpips", "fvd"), others, strict=False))}
    return Reported(source="ten-step prediction", data=data, row=row, values=values)


def _dci(source: str, row: str, disentanglement: float, completeness: float, informativeness: float) -> Reported:
    values = {
        "disentanglement": disentanglement,
        "completeness": completeness,
        "informativeness": informativeness,
    }
    return Reported(source=source, data=_MULTIGRID, row=row, values=values)


def _psnr(source: str, row: str, psnr: float) -> Reported:
    return Reported(source=source, data=_MULTIGRID, row=row, values={"psnr": psnr})


REPORTED = (
    _prediction(AVERAGE, "flam", 34.9, 0.890, 0.051, 419.6),
    _prediction(AVERAGE, "adaworld", 24.7, 0.862, 0.096, 749.5),
    _prediction(AVERAGE, "genie", 28.1, 0.859, 0.091, 717.5),
    _prediction(_MULTIGRID, "flam", 56.5),
    _prediction("Bigfish", "flam", 30.8),
    _prediction("Leaper", "flam", 38.1),
    _prediction("Starpilot", "flam", 29.3),
    _prediction(NUPLAN, "flam", 19.7, 0.577, 0.229, 1946.0),
    _prediction(NUPLAN, "adaworld", 18.1, 0.529, 0.292, 2309.0),
    _prediction(NUPLAN, "tokenizer", 21.7, 0.650, 0.163, 1025.0),
    _dci("DCI, Appendix C.2", "flam", 0.91, 0.91, 0.93),
    _dci("DCI, Appendix C.2", "playslot", 0.81, 0.81, 0.86),
    _dci("DCI, Appendix C.2", "slotformer", 0.85, 0.85, 0.90),
    _psnr("Tables 6 and 7", "previous-frame", 51.6),
    _dci("Tables 6 and 7", "previous-frame", 0.33, 0.23, 0.20),
    _psnr("ablation Global-Coupled", "global-coupling", 56.3),
    _dci("ablation Global-Coupled", "global-coupling", 0.79, 1.00, 0.58),
    *(_psnr("number of factors", with_slots(count).name, psnr) for count, psnr in
      ((2, 53.4), (4, 56.5), (8, 56.5), (16, 56.5))),
    *(_psnr("beta", with_beta(beta).name, psnr) for beta, psnr in
      ((1e-5, 56.5), (1e-4, 56.5), (1e-3, 56.3), (1e-2, 24.9))),
)  # fmt: skip


def reported(data: str, row: str) -> tuple[Reported, ...]:
    """Returns what the paper says of a row on a data set."""
    return tuple(known for known in REPORTED if (known.data, known.row) == (data, row))
