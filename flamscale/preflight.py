"""What is checked before a run trains: a config in; its data set, or one sentence on what would stop it later, out."""

from pathlib import Path

from flamscale.config import PretrainConfig
from flamscale.data.actions import load_true_actions
from flamscale.data.episode import SPLITS
from flamscale.data.latents import load_latents
from flamscale.data.mixture import Mixture
from flamscale.errors import ConfigError
from flamscale.eval.networks import MeasuringNetworks
from flamscale.models.lpips import Lpips, check_image_size
from flamscale.run_directory import RunDirectory, check_same_tokenizer, find_tokenizer
from flamscale.training.mirror import Mirror


def check_inputs(config: PretrainConfig, write: bool = True) -> Mixture:
    """Checks all that can be checked before training, and returns the data set.

    Args:
        config: the run.
        write: also create the run directory, or check that it holds this run.

    Raises:
        FlamError: the data set is missing or of another size, weights for LPIPS or FVD, a trained tokenizer, latents or
            true actions are wanted and not there or not the right ones, the run directory is not to be written or
            another run's.
    """
    data = Mixture.load(config.data.url, config.data.weights)
    size = config.tokenizer.image_size
    if (data.height, data.width) != (size, size):
        raise ConfigError(
            f"The frames in {' '.join(config.data.url)} are {data.width} x {data.height} pixels, "
            f"tokenizer.image-size is {size}; pass --tokenizer.image-size, or make shards with --size {size}."
        )
    for split in SPLITS:
        data.of_split(split)
        if write:
            load_true_actions(config.flam, data, split)  # only to find now what would stop stage 2
    directory = RunDirectory.of(config)
    if write and config.copy_to:
        directory.create()
        restored = directory.restore(config, Mirror(directory.root, config.copy_to))
        if restored:
            print(f"brought back from {config.copy_to}: {', '.join(restored)}", flush=True)
    if not directory.has_tokenizer and not config.tokenizer_from:
        load_perceptual(config)  # only to find now what would stop stage 1
    MeasuringNetworks.load(config.evaluation, size)  # what would stop the evaluation, days later
    _check_trained(config, data, directory)
    if write:
        directory.open(config, data.hash)
    return data


def _check_trained(config: PretrainConfig, data: Mixture, directory: RunDirectory) -> None:
    """Checks a tokenizer from elsewhere, and latents against the run's tokenizer."""
    tokenizer = None
    if config.tokenizer_from and not directory.has_tokenizer:
        found = find_tokenizer(config.tokenizer_from)
        check_same_tokenizer(found, config.tokenizer)
        tokenizer = found.tokenizer
    if not config.data.latents:
        return
    if directory.has_tokenizer:
        tokenizer = directory.read_tokenizer()
    if tokenizer is None:
        raise ConfigError(
            f"data.latents {' '.join(config.data.latents)} can be used only with the tokenizer they were made by, and "
            f"this run is about to train one of its own: pass that one's run directory as --tokenizer-from."
        )
    load_latents(config.data.latents, data, tokenizer.hash)


def load_perceptual(config: PretrainConfig) -> Lpips | None:
    """Returns the frozen network of stage 1's LPIPS term, None where the term is off.

    Raises:
        FlamError: its file is missing or damaged, or the frames are too small for it.
    """
    stage = config.tokenizer_stage
    if stage.lpips_weight == 0:
        return None
    perceptual = Lpips.load(Path(stage.lpips_weights))
    check_image_size(perceptual.network, config.tokenizer.image_size)
    return perceptual
