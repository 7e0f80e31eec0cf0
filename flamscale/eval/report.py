"""The report of a run: an evaluation's numbers and pictures in; result.json, report.md and the picture files out."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flamscale.eval.curves import draw_curves
from flamscale.eval.files import replacing
from flamscale.eval.pictures import draw_contact_sheet, draw_rollout_gif
from flamscale.eval.rollout import RolloutPictures


def write_report(
    folder: Path,
    result: Mapping[str, Any],
    pictures: RolloutPictures,
    *,
    settings: Mapping[str, Any],
    command: str = "",
) -> None:
    """Writes result.json, rollout.gif, rollout.png, curves.png and report.md into `folder`, each whole or not at all.

    Args:
        folder: the run directory, or any other place; curves.png is drawn where metrics.jsonl lies in it.
        result: numbers of `evaluate_rollouts`, `timings` filled by the caller.
        pictures: the pictured clips of `evaluate_rollouts`.
        settings: what to show of the configuration, section -> dataclass or dict.
        command: the command line that made this, for the reader who wants it again.
    """
    write_result(folder / "result.json", result)
    draw_rollout_gif(folder / "rollout.gif", pictures)
    draw_contact_sheet(folder / "rollout.png", pictures)
    if (folder / "metrics.jsonl").exists():
        draw_curves(folder / "metrics.jsonl", folder / "curves.png")
    names = [name for name in ("rollout.gif", "rollout.png", "curves.png") if (folder / name).exists()]
    with replacing(folder / "report.md") as partial:
        partial.write_text(report_text(result, settings=settings, command=command, pictures=names))


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Writes the numbers as JSON; what is not a number (nothing moved, a model diverged) becomes null."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(_finite(result), indent=2, allow_nan=False) + "\n")


def headline(result: Mapping[str, Any]) -> list[str]:
    """Returns the main numbers as a few lines for the terminal."""
    rollout = result["rollout"]
    return [
        f"rollout, {rollout['rollout_steps']} steps, {rollout['num_clips']} held-out clips: "
        f"PSNR {_number(rollout['psnr'], 2)} dB, SSIM {_number(rollout['ssim'], 3)}, "
        f"moving pixels {_number(rollout['moving_psnr'], 2)} dB",
        f"baselines: copy last {_number(rollout['copy_last_psnr'], 2)} dB, "
        f"median frame {_number(rollout['median_frame_psnr'], 2)} dB "
        f"(gain over the better {_number(rollout['gain_over_best_baseline_db'], 2, '+')} dB)",
        f"another clip's actions: {_number(rollout['shuffled_actions_psnr'], 2)} dB "
        f"(a loss of {_number(rollout['shuffled_actions_drop_db'], 2)} dB); "
        f"tokenizer alone: {_number(result['tokenizer']['psnr'], 2)} dB",
    ]


def report_text(result: Mapping[str, Any], *, settings: Mapping[str, Any], command: str, pictures: list[str]) -> str:
    """Returns report.md: numbers, pictures, settings, and the command that made them."""
    parts = ["# FLAM: what the model predicts"] + ([f"```\n{command}\n```"] if command else [])
    parts += [_rollout_section(result), _factor_section(result)]
    if "entities" in result:
        parts += [_entity_section(result["entities"])]
    captions = {
        "rollout.gif": "Truth, prediction and slot masks. Grey frame: given; orange frame: predicted.",
        "rollout.png": "The same clips, a column a step.",
        "curves.png": "Training and validation (dashed).",
    }
    parts += [f"![{captions[name]}]({name})\n\n*{captions[name]}*" for name in pictures]
    if result["timings"]:
        rows = [
            [name.removesuffix("_s").replace("_", " "), _number(value, 1)] for name, value in result["timings"].items()
        ]
        parts += ["## Timings\n\n" + _table(["phase", "seconds"], rows)]
    parts += ["## Settings\n\n" + _settings_table(settings)]
    return "\n\n".join(parts) + "\n"


def rollout_table(result: Mapping[str, Any]) -> str:
    """Returns the Markdown table of the rollout beside its baselines."""
    rollout = result["rollout"]
    model, source = "FLAM", "actions inferred from the true frames"
    if rollout.get("true_actions"):
        model, source = "model", "given the true actions"
    kinds = {
        f"**{model}, {source}**": (rollout, ""),
        f"{model}, another clip's actions": (rollout, "shuffled_actions_"),
        "copy of the last context frame": (rollout, "copy_last_"),
        "median training frame": (rollout, "median_frame_"),
        "tokenizer's reconstruction of the same frames": (result["tokenizer"], ""),
    }
    measures = {"psnr": ("PSNR (dB)", 2), "ssim": ("SSIM", 3), "moving_psnr": ("PSNR, moving pixels (dB)", 2)}
    if "lpips" in rollout:
        measures["lpips"] = ("LPIPS", 4)
    if "fvd" in rollout:
        measures["fvd"] = ("FVD", 1)
    rows = [
        [name, *(_number(values.get(f"{prefix}{key}", math.nan), decimals) for key, (_, decimals) in measures.items())]
        for name, (values, prefix) in kinds.items()
    ]
    return _table([f"{rollout['rollout_steps']}-step prediction", *(title for title, _ in measures.values())], rows)


def _rollout_section(result: Mapping[str, Any]) -> str:
    rollout = result["rollout"]
    steps = list(range(1, rollout["rollout_steps"] + 1))
    by_step = {
        "prediction": rollout["psnr_by_step"],
        "another clip's actions": rollout["shuffled_actions_psnr_by_step"],
        "copy last": rollout["copy_last_psnr_by_step"],
        "median frame": rollout["median_frame_psnr_by_step"],
    }
    by_step_rows = [[name, *(_number(value, 1) for value in values)] for name, values in by_step.items()]
    return "\n\n".join(
        [
            "## Rollouts on held-out clips",
            f"{rollout['num_clips']} clips, {rollout['context_frames']} context frames, {rollout['rollout_steps']} "
            f"predicted frames, a frame every {rollout['frame_stride']} source frame(s); "
            f"{_number(100 * rollout['moving_pixel_share'], 1)} % of the pixels to predict move.",
            rollout_table(result),
            f"95 % interval of the mean over clips (bootstrap): PSNR {_interval(rollout['psnr_interval'], 2)} dB, SSIM "
            f"{_interval(rollout['ssim_interval'], 3)}.",
            f"{_number(rollout['gain_over_best_baseline_db'], 2, '+')} dB over the better baseline; "
            f"another clip's actions cost {_number(rollout['shuffled_actions_drop_db'], 2)} dB.",
            *_fvd_note(rollout),
            _table(["PSNR (dB) at step", *map(str, steps)], by_step_rows),
        ]
    )


def _fvd_note(rollout: Mapping[str, Any]) -> list[str]:
    if "fvd" not in rollout:
        return []
    return [
        f"FVD is from the true frames of the same {rollout['num_clips']} clips, so it can lie below that of one half "
        f"of the true clips from the other, which is {_number(rollout['fvd_floor'], 1)}."
    ]


def _factor_section(result: Mapping[str, Any]) -> str:
    factors, tokenizer = result["factors"], result["tokenizer"]
    slots = [str(slot + 1) for slot in range(len(factors["kl"]))]
    rows = [
        ["KL (nats a step)", *(_number(value, 2) for value in factors["kl"])],
        ["share of tokens (%)", *(_number(100 * value, 1) for value in factors["slot_mass"])],
    ]
    return "\n\n".join(
        [
            "## Factors",
            _table(["slot", *slots], rows),
            *_kept_note(factors),
            f"KL of all factors {_number(factors['kl_total'], 2)} nats a step; {factors['dead_slots']} dead slot(s); "
            f"assignment entropy {_number(factors['assignment_entropy'], 3)} of at most "
            f"{_number(factors['max_assignment_entropy'], 3)} nats. Codebook: "
            f"{_number(100 * tokenizer['codebook_used'], 1)} % of {tokenizer['codebook_size']} entries used, "
            f"perplexity {_number(tokenizer['codebook_perplexity'], 1)}.",
        ]
    )


def _kept_note(factors: Mapping[str, Any]) -> list[str]:
    if "slots_kept" not in factors:
        return []
    clips = {count: clips for count, clips in enumerate(factors["slots_kept_clips"]) if clips}
    return [
        f"A clip keeps {_number(factors['slots_kept'], 2)} of {len(factors['kl'])} slots on average: "
        + ", ".join(f"{count} in {number} clip(s)" for count, number in clips.items())
        + "."
    ]


def _entity_section(entities: Mapping[str, Any]) -> str:
    flam, eastwood_williams = entities["dci_flam"], entities["dci_eastwood_williams"]
    forms = {
        "FLAM: a linear probe from each slot to each entity's cell": flam,
        "Eastwood and Williams: importances in a predictor from all slots": eastwood_williams,
    }
    names = ("disentanglement", "completeness", "informativeness")
    rows = [[form, *(_number(values[name], 3) for name in names)] for form, values in forms.items()]
    lines = {
        "slots that take over another's tokens, a step (share)": "slot_swap_rate",
        "entities that change their slot, a step (share)": "entity_swap_rate",
        "FG-ARI, frame by frame": "fg_ari",
        "FG-ARI, whole clips": "fg_ari_whole_clips",
        "mean IoU of entities and slots": "mean_iou",
        "information of latent actions on true ones (nats)": "action_information",
        "the same with another clip's true actions (nats)": "action_information_other_clips",
        "entropy of true actions (nats)": "action_entropy",
    }
    measures = [[text, _number(entities[name], 3)] for text, name in lines.items() if name in entities]
    return "\n\n".join(
        [
            "## Entities",
            f"{entities['num_clips']} held-out clips of {entities['clip_frames']} frames, {entities['num_entities']} "
            f"entities; probes fitted on {entities['num_probe_clips']} training clips. The commonest cell alone would "
            f"be right in {_number(100 * entities['probe_accuracy_commonest_cell'], 1)} % of frames.",
            _table(["DCI", *names], rows),
            _table(["measure", "value"], measures),
        ]
    )


def policy_table(result: Mapping[str, Any]) -> str:
    """Returns what `evaluate_policies` found as a table."""
    rows = []
    for row in result["policies"]:
        learned = "label_accuracy" in row
        rows.append(
            [
                row["policy"],
                str(row["num_labels"] or ""),
                _number(row["return"], 3),
                _interval(row["return_range"], 3),
                f"{_number(100 * row['success'], 0)} %",
                f"{_number(100 * row['label_accuracy'], 1)} %" if learned else "",
                f"{_number(row['gain'], 3, '+')} ({_interval(row['gain_range'], 3)})" if learned else "",
            ]
        )
    head = [
        "policy",
        "labels",
        "return",
        f"least and most of {len(result['policies'][0]['return_by_seed'])} seeds",
        "goal reached",
        "right pseudo-labels",
        "gain over labels alone (least and most)",
    ]
    return _table(head, rows)


def _settings_table(settings: Mapping[str, Any]) -> str:
    plain = {
        name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
        for name, value in settings.items()
    }
    sections = {name: section for name, section in plain.items() if isinstance(section, Mapping)}
    sections = {"run": {name: plain[name] for name in plain.keys() - sections.keys()}, **sections}
    lines = {
        name: ", ".join(f"{key} `{value}`" for key, value in sorted(section.items()) if value != "")
        for name, section in sections.items()
    }
    return _table(["part", "settings"], [[name, line] for name, line in lines.items() if line])


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1) if len(head) > 2 else ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float, decimals: int, sign: str = "") -> str:
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}" if math.isfinite(value) else "n/a"


def _interval(bounds: Sequence[float], decimals: int) -> str:
    low, high = bounds
    return f"{_number(low, decimals)} to {_number(high, decimals)}"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
