"""Which clips a run reads, and how."""

from dataclasses import dataclass
from typing import Literal

from flamscale.config.checks import require


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which shards to read, and how."""

    url: tuple[str, ...] = ()
    """Folder or s3:// URL of the data set: the one that holds manifest.arrow; several are mixed."""
    weights: tuple[float, ...] = ()
    """How often each of several data sets is drawn from (any unit); if not given, by its number of clips."""
    latents: tuple[str, ...] = ()
    """Folder or URL of each data set's latents, from recipes/tokenize_shards.py: stage 2 reads them in place of video
    and needs the tokenizer they were made by, see tokenizer_from."""
    train_samples: int = 0
    """Training samples to use, the data set's first (count); 0 for all. Validation and test keep theirs."""
    window_shards: int = 16
    """Shards whose clips are shuffled together (count); reads stay near-sequential inside a window."""
    num_processes: int = 0
    """Processes that read and decode for each worker (count); 0 leaves it to a thread of the worker."""
    decode_backend: Literal["auto", "pyav", "torchcodec", "opencv"] = "auto"
    """What decodes video: auto (PyAV, the fastest on short clips), or one of them; the latter two: extra decode."""
    decode_threads: int = 1
    """Clips decoded at once in each of them (count)."""
    prefetch_batches: int = 2
    """Micro-batches read ahead of training by each of them (count); 0 reads in the training thread."""
    shard_cache: str = "auto"
    """Folder on local disk for copies of an object store's shards, shared by a node's workers and later runs: auto
    (one in $TMPDIR, /tmp if that is not set, which leaves half of the free space alone), a path, or empty for none."""
    shard_cache_gib: float = 64.0
    """Size of all these copies together (GiB); the least recently used go first."""
    fetch_cache_mib: int = 256
    """Memory each reading process may fill with what it fetched from an object store, where there are no copies (MiB);
    fastest if it holds the window-shards largest shards; 0 asks the store for every clip anew."""
    cache_mib: int = 0
    """Memory a worker process may fill with whole decoded samples (MiB); 0 decodes just the frames of each clip."""
    max_bad_fraction: float = 0.01
    """Share of the samples a worker reads that may turn out damaged before the run stops with an error (0 to 1); one
    sample always may, unless this is 0."""

    def __post_init__(self) -> None:
        require(
            not self.weights or (len(self.weights) == len(self.url) and min(self.weights) > 0),
            f"data.weights must be one positive number for each of the {len(self.url)} data sets, got {self.weights}.",
        )
        require(
            len(set(self.url)) == len(self.url) and all(self.url),
            f"data.url must name each data set once, got {self.url}.",
        )
        require(
            not self.latents or len(self.latents) == len(self.url),
            f"data.latents must name one folder for each of the {len(self.url)} data sets, got {self.latents}.",
        )
        require(self.train_samples >= 0, f"data.train-samples must be 0 or more, got {self.train_samples}.")
        require(
            self.train_samples == 0 or len(self.url) <= 1,
            f"data.train-samples {self.train_samples} needs a single data set, got {len(self.url)}; leave it out.",
        )
        require(self.num_processes >= 0, f"data.num-processes must be 0 or more, got {self.num_processes}.")
        require(self.decode_threads >= 1, f"data.decode-threads must be at least 1, got {self.decode_threads}.")
        require(
            self.num_processes == 0 or self.prefetch_batches >= 1,
            f"data.num-processes {self.num_processes} needs data.prefetch-batches of at least 1, got 0.",
        )
        require(self.shard_cache_gib > 0, f"data.shard-cache-gib must be above 0, got {self.shard_cache_gib}.")
        require(self.window_shards >= 1, f"data.window-shards must be at least 1, got {self.window_shards}.")
        require(self.prefetch_batches >= 0, f"data.prefetch-batches must be 0 or more, got {self.prefetch_batches}.")
        require(self.fetch_cache_mib >= 0, f"data.fetch-cache-mib must be 0 or more, got {self.fetch_cache_mib}.")
        require(self.cache_mib >= 0, f"data.cache-mib must be 0 or more, got {self.cache_mib}.")
        require(
            0 <= self.max_bad_fraction <= 1,
            f"data.max-bad-fraction must lie between 0 and 1, got {self.max_bad_fraction}.",
        )

    @property
    def encodes_ahead(self) -> bool:
        """Whether the loader encodes stage 2's videos, once, and keeps that: a cache that processes do not share."""
        return not self.latents and self.cache_mib > 0 and self.num_processes == 0

    @property
    def encodes_each_clip(self) -> bool:
        """Whether stage 2 encodes every clip as it comes."""
        return not self.latents and not self.encodes_ahead
