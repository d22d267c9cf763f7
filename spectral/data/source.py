"""All data of one run: training batches by step number, and the probes."""

from functools import cached_property

import torch

from spectral.config import RunConfig
from spectral.data import probes
from spectral.data.batch import TokenBatch
from spectral.data.distribution import draw_training_sequences
from spectral.data.probe_sequences import ProbeBatch
from spectral.data.text import ByteCorpus
from spectral.errors import ConfigError
from spectral.randomness import torch_generator


class DataSource:
    """Training batches and probe batches of one configuration.

    Nothing here has a state that moves: a batch depends on (config, step), a probe on the config, so a resumed run
    sees what the uninterrupted one would have seen.

    Attributes:
        config: the configuration.
        device: where every batch lives.
        corpus: the text of `data="text"`, else None.
        n_batches: batches before the training set repeats; 0 = every batch is new.
    """

    def __init__(self, config: RunConfig, device: torch.device | str) -> None:
        """Check the sizes and read the text, if any.

        Raises:
            ConfigError: the training set is smaller than one batch, or the text cannot be read or is too short.
        """
        self.config = config
        self.device = torch.device(device)
        self.n_batches = config.n_sequences // config.batch_size
        if config.n_sequences and not self.n_batches:
            raise ConfigError(
                [
                    f"--n_sequences {config.n_sequences} does not fill one batch; raise it to at least --batch_size "
                    f"{config.batch_size}, lower --batch_size, or give 0 for a new batch at every step"
                ]
            )
        self.corpus: ByteCorpus | None = None
        if config.data == "text":
            self.corpus = ByteCorpus.from_path(config.text_path or "")
            self.corpus.require(config.seq_length)
        # Chains are walked and windows cut on the host, so their draws are made there: no wait for the accelerator.
        self._draw_device = self.device if config.data in ("repeated", "patterns") else torch.device("cpu")

    def batch(self, step: int) -> TokenBatch:
        """Return the training batch of one optimizer step, `batch_size` sequences."""
        index = step % self.n_batches if self.n_batches else step
        return draw_training_sequences(
            self.config,
            batch_size=self.config.batch_size,
            period_per=self.config.period_per,
            split="train",
            corpus=self.corpus,
            generator=torch_generator(self.config.seed, "train", index, device=self._draw_device),
            device=self.device,
        )

    @cached_property
    def curvature_probe(self) -> TokenBatch:
        """Held-out sequences as in training, on which the Hessian is taken."""
        return probes.curvature_probe(self.config, corpus=self.corpus).to(self.device)

    @cached_property
    def behaviour_probe(self) -> TokenBatch:
        """Held-out sequences for losses and accuracies."""
        return probes.behaviour_probe(self.config, corpus=self.corpus).to(self.device)

    @cached_property
    def repeat_probe(self) -> ProbeBatch:
        """Repeated blocks of distinct tokens with varying periods, for head scores."""
        return probes.repeat_probe(self.config, corpus=self.corpus).to(self.device)

    @cached_property
    def attention_probe(self) -> ProbeBatch | None:
        """The one sequence whose attention patterns are stored, or None where none are."""
        probe = probes.attention_probe(self.config, corpus=self.corpus)
        return None if probe is None else probe.to(self.device)

    @cached_property
    def period_probes(self) -> dict[int, ProbeBatch]:
        """Repeated blocks of one length each, for every period of `resolved_probe_periods`."""
        periods = self.config.resolved_probe_periods
        return {
            period: probes.period_probe(self.config, period, corpus=self.corpus).to(self.device) for period in periods
        }

    @cached_property
    def circuit_probes(self) -> dict[str, ProbeBatch]:
        """One probe per kind of `circuit_probe`, in the order of `CIRCUIT_PROBES`; kinds without room are left out."""
        drawn = {kind: probes.circuit_probe(self.config, kind, corpus=self.corpus) for kind in probes.CIRCUIT_PROBES}
        return {kind: probe.to(self.device) for kind, probe in drawn.items() if probe is not None}

    @property
    def icl_positions(self) -> tuple[int, int]:
        """Logit indices (t1, t2) of the in-context learning score on the behaviour probe, t1 < t2 = seq_length - 2.

        Where the probe repeats blocks, t1 lies in the first half of the shortest one, so nothing has repeated yet;
        elsewhere it lies a tenth into the sequence, the proportion of the usual 50th and 500th token.
        """
        last = self.config.seq_length - 2
        if self.config.data in ("repeated", "text"):
            first = probes.period_range(self.config)[0] // 2 - 1
        else:
            first = self.config.seq_length // 10
        return max(0, min(first, last - 1)), last
