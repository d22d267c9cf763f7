"""The settings of one experiment on generalised induction heads.

`GIHConfig` holds every setting under the name of its command line flag; building one validates it and reports all
faults together. Presets are YAML files in `spectral/gih/presets/` that set some of the fields.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spectral.config.presets import read_mapping
from spectral.data.ngram import Start
from spectral.errors import ConfigError
from spectral.gih.stages import Optimizer, Stage
from spectral.models import DisentangledTransformer, FullDisentangledTransformer, LastTokenLoss, window_offsets
from spectral.models.disentangled import Window
from spectral.models.disentangled_full import Normaliser

PRESET_FOLDER = Path(__file__).parent / "presets"


@dataclass(frozen=True, kw_only=True)
class GIHConfig:
    """Everything that decides what an experiment computes.

    The stages are given as lists of equal length, one entry per stage; a single entry of a list counts for all stages.

    Attributes:
        vocab_size: S, number of tokens.
        seq_length: L, tokens that the model reads; the one after them is predicted.
        parents: lags that the next token depends on; a gap is allowed, for example `[1, 3]`.
        n_gram: instead of `parents`: the lags 1 .. n_gram - 1; 0 = use `parents`.
        alpha: Dirichlet concentration of every row of the transition tables.
        start: law of the first tokens, `uniform` or `stationary`.
        n_sample: chains, training and validation together, one transition table each.
        n_validation: how many of them are held out.
        model: `simplified` (trainable w, c, a) or `full` (also W_Q, W_K, W_V and a LayerNorm).
        n_heads: H, heads of layer 1.
        window_length: M, offsets that a head sees; 0 = n_heads.
        window: `own`: head h sees h .. h + M - 1; `common`: every head sees 1 .. M.
        low_degree: D, largest subset of heads that has a feature.
        w_plus: initial relative-position weight of head h at offset h.
        w_minus: initial weight at every other offset.
        c_alpha: initial coefficient of every subset.
        a: initial weight of layer 2.
        qk_init: W_Q and W_K start at this times the identity (`model full`).
        v_init: W_V starts at this times the identity (`model full`).
        normaliser: `plain` or `standard` (`model full`).
        loss: `double_softmax`, the softmax cross-entropy that takes the output probabilities for logits, or `nll`, the
            cross-entropy of the output. Both are always measured.
        eps: added to the probability under the logarithm of `nll`.
        train: what moves in each stage: parameter names joined by `+`, for example `c+w`; `all` = every parameter.
        n_epochs: updates of each stage; 0 where a flow is followed.
        lr: learning rate of each stage.
        flow_time: follow the gradient flow for this long instead; 0 = descent.
        optim: `sgd` (plain gradient descent) or `adam`.
        batch_size: sequences per update; 0 = all of the training set.
        hessian_points: how many of the measurements of a stage carry the eigenvalues of the Hessian; 0 = none.
        generalisation_chains: fresh chains at each of three concentrations on which the trained model is tried at
            lengths 10 to 1,000; 0 = none.
        seed: of the chains and of the order of mini-batches; the model starts at constants.
    """

    vocab_size: int = 3
    seq_length: int = 100
    parents: tuple[int, ...] = (1, 2)
    n_gram: int = 0
    alpha: float = 0.1
    start: Start = "uniform"
    n_sample: int = 10_000
    n_validation: int = 1_000
    model: Literal["simplified", "full"] = "simplified"
    n_heads: int = 3
    window_length: int = 0
    window: Window = "own"
    low_degree: int = 2
    w_plus: float = 3.0
    w_minus: float = 0.1
    c_alpha: float = 0.01
    a: float = 0.01
    qk_init: float = 0.01
    v_init: float = 0.01
    normaliser: Normaliser = "plain"
    loss: LastTokenLoss = "double_softmax"
    eps: float = 1e-4
    train: tuple[str, ...] = ("c", "w", "a")
    n_epochs: tuple[int, ...] = (2_000, 50_000, 5_000)
    lr: tuple[float, ...] = (1.0,)
    flow_time: tuple[float, ...] = (0.0,)
    optim: Optimizer = "sgd"
    batch_size: int = 0
    hessian_points: int = 20
    generalisation_chains: int = 4_000
    seed: int = 0

    def __post_init__(self) -> None:
        faults = _faults(self)
        if faults:
            raise ConfigError(faults)

    @property
    def lags(self) -> tuple[int, ...]:
        """Return the parents, from `n_gram` where that is given."""
        return tuple(range(1, self.n_gram)) if self.n_gram else self.parents

    @property
    def n_training(self) -> int:
        """Return how many chains train."""
        return self.n_sample - self.n_validation

    @property
    def offsets_per_head(self) -> int:
        """Return M with its default filled in."""
        return self.window_length or self.n_heads

    def build_model(self) -> DisentangledTransformer:
        """Return the model at its initial values, in float64."""
        shared: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "n_heads": self.n_heads,
            "window_length": self.offsets_per_head,
            "window": self.window,
            "degree": self.low_degree,
            "w_plus": self.w_plus,
            "w_minus": self.w_minus,
            "c_init": self.c_alpha,
            "a_init": self.a,
        }
        if self.model == "simplified":
            return DisentangledTransformer(**shared)
        return FullDisentangledTransformer(
            **shared, qk_init=self.qk_init, v_init=self.v_init, normaliser=self.normaliser
        )

    def stages(self) -> list[Stage]:
        """Return the stages of the run."""
        names = self._parameter_names()
        n = len(self.train)
        lists = (_spread(self.n_epochs, n), _spread(self.lr, n), _spread(self.flow_time, n))
        return [
            Stage(
                train=tuple(names) if moved == "all" else tuple(moved.split("+")) if moved else (),
                epochs=int(epochs),
                lr=float(lr),
                flow_time=float(flow),
                optimizer=self.optim,
                batch_size=self.batch_size,
            )
            for moved, epochs, lr, flow in zip(self.train, *lists, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as YAML and JSON can hold them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GIHConfig":
        """Build the settings from `to_dict` output or a preset; an unknown name raises `ConfigError`."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError([f"unknown setting {name!r}; remove it" for name in unknown])
        given: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
        return cls(**given)

    def _parameter_names(self) -> list[str]:
        if self.model == "simplified":
            return ["w", "c", "a"]
        extra = ["c_residual"] if self.normaliser == "standard" else []
        return ["w", "c", "a", "W_Q", "W_K", "W_V", "norm.weight", "norm.bias", *extra]


def gih_preset_names() -> list[str]:
    """Return the names of the presets."""
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def load_gih_preset(name: str) -> dict[str, Any]:
    """Return the settings of one preset for `GIHConfig.from_dict`; an unknown name raises `ConfigError`."""
    if name not in gih_preset_names():
        raise ConfigError([f"--preset {name!r} is unknown; use one of {', '.join(gih_preset_names())}"])
    return read_gih_settings(PRESET_FOLDER / f"{name}.yaml")


def read_gih_settings(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML or JSON file, for example the `config.json` of a run.

    Raises:
        ConfigError: the file is missing, is no mapping, holds an unknown name or a name without a value.
    """
    values = read_mapping(path)
    known = {field.name for field in dataclasses.fields(GIHConfig)}
    unknown = [str(name) for name in values if name not in known]
    empty = [str(name) for name, value in values.items() if value is None]
    faults = [f"--config {path} holds the unknown setting {name!r}; remove it" for name in unknown]
    faults += [f"--{name} has no value in --config {path}; give one or remove it" for name in empty]
    if faults:
        raise ConfigError(faults)
    return values


def _spread(values: tuple[Any, ...], n: int) -> tuple[Any, ...]:
    return values * n if len(values) == 1 else values


def _faults(config: GIHConfig) -> list[str]:
    found = _shape_faults(config)
    # Windows, data and stages only make sense to check once the sizes they are made of do.
    return found or _data_faults(config) + _stage_faults(config)


def _shape_faults(config: GIHConfig) -> list[str]:
    found = []
    least = {"vocab_size": 2, "seq_length": 1, "n_heads": 1, "n_sample": 1}
    for name, smallest in least.items():
        if getattr(config, name) < smallest:
            found.append(f"--{name} is {getattr(config, name)}; give at least {smallest}")
    for name in ("window_length", "n_gram", "n_validation", "batch_size", "hessian_points", "generalisation_chains"):
        if getattr(config, name) < 0:
            found.append(f"--{name} is {getattr(config, name)}; give 0 or more")
    for name in ("w_plus", "w_minus", "c_alpha", "a", "qk_init", "v_init"):
        if not math.isfinite(getattr(config, name)):
            found.append(f"--{name} is {getattr(config, name)}; give a finite number")
    if config.c_alpha == 0:
        found.append("--c_alpha is 0, where the shares of the subsets are undefined; give a value such as 0.01")
    if not 0 <= config.low_degree <= config.n_heads:
        found.append(f"--low_degree is {config.low_degree} with {config.n_heads} heads; give 0 to {config.n_heads}")
    if config.window == "common" and 0 < config.window_length < config.n_heads:
        found.append(
            f"--window_length is {config.window_length}: with --window common, head {config.n_heads} has no offset "
            f"of its own; give at least {config.n_heads} or use --window own"
        )
    return found


def _data_faults(config: GIHConfig) -> list[str]:
    found = []
    if not (config.alpha > 0 and math.isfinite(config.alpha)):
        found.append(f"--alpha is {config.alpha}; a Dirichlet concentration must be above 0, for example 0.1")
    if not (config.eps >= 0 and math.isfinite(config.eps)):
        found.append(f"--eps is {config.eps}; give 0 or a small positive number")
    if config.n_gram == 1:
        found.append("--n_gram 1 has no parent; give 2 or more (n_gram - 1 parents)")
    elif config.n_gram and config.parents not in ((1, 2), config.lags):
        found.append(f"--n_gram {config.n_gram} and --parents {list(config.parents)} disagree; give one of them")
    lags = config.lags
    if config.n_gram != 1 and (not lags or min(lags) < 1 or len(set(lags)) != len(lags)):
        found.append(f"--parents is {list(lags)}; give different lags of at least 1")
    offsets = window_offsets(config.n_heads, config.offsets_per_head, config.window)
    unseen = [lag for lag in lags if lag not in offsets]
    reach = int(offsets.max())
    if unseen and not found:
        found.append(
            f"--parents {unseen} lie outside every head's window, which ends at offset {reach}; add heads, lengthen "
            f"--window_length or choose nearer parents"
        )
    if config.seq_length < reach:
        found.append(
            f"--seq_length is {config.seq_length}, shorter than the windows, which reach {reach} tokens back; give at "
            f"least {reach}"
        )
    elif lags and config.seq_length <= max(lags):
        found.append(f"--seq_length is {config.seq_length}; give more than the largest parent, {max(lags)}")
    if config.n_validation >= config.n_sample:
        found.append(
            f"--n_validation is {config.n_validation} of {config.n_sample} chains, so nothing trains; give fewer"
        )
    elif config.batch_size > config.n_training:
        found.append(
            f"--batch_size is {config.batch_size} with {config.n_training} training chains; reduce it or use 0"
        )
    return found


def _stage_faults(config: GIHConfig) -> list[str]:
    found, n = [], len(config.train)
    if not n:
        return ["--train names no stage, so nothing trains; give for example c w a"]
    for name in ("n_epochs", "lr", "flow_time"):
        if len(getattr(config, name)) not in (1, n):
            found.append(f"--{name} has {len(getattr(config, name))} entries for {n} stages; give 1 or {n}")
    if found:
        return found
    known = config._parameter_names()
    for stage in config.stages():
        unknown = [name for name in stage.train if name not in known]
        if unknown:
            found.append(f"--train names {', '.join(unknown)}; choose from {', '.join(known)} or all")
        found += [f"--train: {fault}" for fault in stage.faults()]
    return found
