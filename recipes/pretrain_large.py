#!/usr/bin/env python
"""Does a factored latent action model, pretrained on video alone, predict what the entities of a scene do?

Trains the tokenizer (stage 1), then FLAM on its frozen features (stage 2), on Ray workers with DeepSpeed ZeRO; exports
the model in Hugging Face form and rolls it out on held-out clips. Submitting the same command again resumes the run.

--data is short for --data.url, --kernels for --flam.kernels. One tokenizer for several data sets: a run on all of them
(--data A B --out runs/both), then one on each with --tokenizer-from runs/both; recipes/evaluate.py --data A tells how
good model and tokenizer are on A alone.

Command: ray job submit --runtime-env cluster/runtime_env.yaml --working-dir . -- \\
    python recipes/pretrain_large.py --preset large --data s3://bucket/shards --out /shared/runs/large

Hardware and hours: quickstart 2 CPU cores, 0.2 h; multigrid and procgen 1 GPU, about a day; large 64 GPUs, days.

Expected: ten-step rollouts of quickstart within 1 dB of the tokenizer's own reconstruction (40 to 45 dB PSNR).
"""

from collections.abc import Sequence

from flamscale_cluster.arguments import Arguments, check_places, parse_arguments

from flamscale import command_line


def config(arguments: Sequence[str]) -> Arguments:
    """Returns the preset with the settings that the flags change."""
    return parse_arguments(arguments, description=__doc__ or "")


def main(arguments: Sequence[str]) -> None:
    """Runs the job, or describes it."""
    chosen = config(arguments)
    if chosen.dry_run:
        from flamscale.dry_run import print_dry_run  # imports torch, which --help shall not wait for

        print_dry_run(chosen.config)
        return
    check_places(chosen.config)
    from flamscale_cluster.launch import launch  # imports ray

    launch(chosen.config)


if __name__ == "__main__":
    command_line.run(main)
