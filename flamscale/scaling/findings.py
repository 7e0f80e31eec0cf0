"""What a study found, in words: a group of points with its fits in; sentences for report and model cards out."""

from flamscale.scaling.conclusions import Group, largest_runs
from flamscale.scaling.estimate import Estimate
from flamscale.scaling.saturation import Saturation


def findings(group: Group) -> list[str]:
    """Returns a sentence for each fit, and one for each that the runs do not support."""
    lines = [_saturation_finding(group.saturation)] if group.saturation else []
    if group.law:
        law = group.law
        powers = " + ".join(
            f"{law.coefficient(name).value:.3g} {name}^-{law.exponent(name).value:.3g}" for name in law.names
        )
        exponents = "; ".join(f"of {name} {_bracketed(law.exponent(name), '.3f')}" for name in law.names)
        lines.append(f"loss = {law.irreducible.value:.4g} + {powers}; exponent {exponents}.")
    if group.held_out:
        held_out, common = group.held_out, largest_runs(group.points)[0]
        lines.append(
            f"all {len(held_out.predicted)} runs of {common}, predicted from the other "
            f"{len(group.points) - len(held_out.predicted)}: their mean loss is {held_out.measured.mean():.4g}, the "
            f"prediction's error {held_out.mean_error:+.1%}, and at the worst run {held_out.worst_error:+.1%}."
        )
    if group.isoflops:
        lines.append(f"the best size grows with compute to the power of {_bracketed(group.isoflops.exponent, '.2f')}.")
    lines += group.refusals
    return [f"{group.label}: {line}" if group.label else line for line in lines]


def _saturation_finding(found: Saturation) -> str:
    where = f"from K = {found.knee.value:g} ({found.knee.low:g} to {found.knee.high:g}) on rollout PSNR"
    if found.per_doubling_above:
        verb = "falls" if found.per_doubling_above.value < 0 else "rises"
        above = f"{where} {verb}, by {_bracketed(found.per_doubling_above, '+.2f')} dB with a doubling of K"
    elif found.is_seen:
        above = f"{where} stays level, at {_bracketed(found.plateau, '.2f')} dB"
    else:
        above = (
            f"no K up to {found.largest} is sure to be enough: rollout PSNR may still change there, at "
            f"{_bracketed(found.plateau, '.2f')} dB"
        )
    return f"{above}; below, a doubling of K changes it by {_bracketed(found.per_doubling, '+.2f')} dB."


def _bracketed(found: Estimate, form: str) -> str:
    return f"{found.value:{form}} ({found.low:{form}} to {found.high:{form}})"
