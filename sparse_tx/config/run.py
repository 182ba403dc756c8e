"""What a training run is: its data, its recipe and its model, and the flat form that files hold."""

from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any, Literal

from sparse_tx.config.model import ModelConfig
from sparse_tx.errors import UserError


def _require(ok: bool, name: str, value: Any, limit: str) -> None:
    if not ok:
        raise UserError(f"{name} is {value}; it must be {limit}")


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _check_is_one_image(seq_len: int | None, shape: tuple[int, ...]) -> None:
    if shape and seq_len is not None and seq_len != prod(shape):
        raise UserError(
            f"seq_len is {seq_len}, and an image of {_by(shape)} is one sequence of {prod(shape)}"
            " bytes; leave --seq_len out"
        )


def _parse_stages(text: str) -> tuple[tuple[int, float], ...]:
    pieces = [piece.split(":") for piece in text.split(",") if piece.strip()]
    try:
        stages = tuple((int(length), float(until)) for length, until in pieces)
    except ValueError:
        raise UserError(
            f"length_warmup is '{text}'; write LENGTH:SHARE,... such as 256:0.3,1024:0.6"
        ) from None
    ends = [until for _, until in stages]
    if ends != sorted(set(ends)) or any(not 0 < end <= 1 for end in ends):
        raise UserError(
            f"length_warmup is '{text}': the shares of the run at which lengths end must ascend,"
            " above 0 and up to 1"
        )
    if any(length < 1 for length, _ in stages):
        raise UserError(f"length_warmup is '{text}'; lengths are 1 or more")
    return stages


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and how it becomes tokens."""

    data: str = "stdlib"
    """stdlib, enwik8, hf:NAME[:CONFIG], or a file or folder (plain, gz, bz2, xz, zst, zip); of
    images: mnist, a folder of image files, or a .npy file of bytes, N x H x W or N x H x W x C."""
    tokenizer: Literal["byte", "char", "bpe"] = "byte"
    """byte: 256 symbols; char: the corpus's characters; bpe: trained on the corpus. Images are
    bytes."""
    split: tuple[float, float, float] = (90, 5, 5)
    """Percent of the bytes, in order, for training, validation and test, such as 90,5,5."""
    image_shape: tuple[int, ...] = ()
    """H,W,C of images as raster bytes, such as 32,32,3; read from the data where that says it."""
    cache_dir: str | None = None
    """Where tokens and downloads are kept; by default the user's cache folder."""

    def __post_init__(self):
        shape = self.image_shape
        if shape and (len(shape) != 3 or min(shape) < 1 or shape[2] not in (1, 3, 4)):
            raise UserError(
                f"image_shape is {_by(shape)}; give rows, columns and channels, of which there are"
                " 1, 3 or 4, such as 28,28,1"
            )
        if shape and self.tokenizer != "byte":
            raise UserError(
                f"tokenizer is {self.tokenizer}, and the data is images of {_by(shape)}, whose"
                " tokens are bytes; leave --tokenizer out"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained, for how long, and what is written down meanwhile."""

    init_from: str | None = None
    """Begin with the weights of this run directory or checkpoint, under any seq_len and pattern."""
    max_steps: int | None = None
    """Optimiser steps after which training ends; the learning rate follows them if given."""
    max_minutes: float | None = None
    """Wall-clock minutes that the whole command may take, last evaluation and sample included."""
    batch_size: int = 1
    """Windows of seq_len tokens per forward pass."""
    length_warmup: str = ""
    """Shorter windows at first, such as 256:0.3,1024:0.6: of 256 tokens for the first 0.3 of the
    run, of 1,024 until 0.6 of it. A step has as many tokens as later."""
    accumulation: int = 1
    """Forward passes per optimiser step."""
    optimiser: Literal["adamw", "muon"] = "adamw"
    """muon: orthogonal momentum for the blocks' matrices, AdamW for the rest."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    matrix_lr: float = 0.02
    """Peak learning rate of Muon."""
    table_lr: float = 0.2
    """Peak learning rate of the rows that n-grams and recall look up, by row-wise Adagrad."""
    final_lr_share: float = 0.0
    """Share of the peak learning rate at which the schedule ends."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls after warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW, such as .9,.95."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices, per unit of learning rate."""
    clip: float = 1.0
    """Largest norm of the gradient; that of look-ups is scaled with the rest, and not counted."""
    spike: float | None = 10.0
    """Standard deviations above the running mean of the loss beyond which a step is a spike, and
    is skipped; null for no such limit."""
    max_bad_steps: int = 10
    """Bad steps in a row (spikes, losses or gradients that are not finite) that end a run."""
    ema: float = 0.0
    """Decay of the moving average of weights that is evaluated and sampled; 0 for none."""

    eval_every: int = 200
    """Steps between evaluations."""
    eval_bytes: int | None = 131_072
    """Bytes at the start of the validation split that are scored then; null for all."""
    final_eval_bytes: int | None = 1_000_000
    """The same for the evaluation that ends the run."""
    save_every: int = 200
    """Steps between checkpoints."""
    keep_last: int = 2
    """Latest checkpoints that are kept, beside the best."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    sample_length: int = 200
    """Tokens of the sample that is printed after each evaluation; 0 for none."""

    seed: int = 1
    """Of weights, data order and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16: automatic mixed precision, the latter with a dynamic loss scale; for GPUs."""

    def __post_init__(self):
        positive = (
            "batch_size accumulation lr matrix_lr table_lr clip max_bad_steps eval_every save_every"
            " keep_last log_every"
        )
        for name in positive.split():
            _require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        for name in ("max_steps", "max_minutes", "eval_bytes", "final_eval_bytes", "spike"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, value, "more than 0")
        for name in ("warmup_steps", "weight_decay", "sample_length", "seed"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(self.seed < 2**63, "seed", self.seed, "below 2^63")
        _require(0 <= self.ema < 1, "ema", self.ema, "from 0 to below 1")
        _require(0 <= self.final_lr_share <= 1, "final_lr_share", self.final_lr_share, "0 to 1")
        _require(all(0 <= b < 1 for b in self.betas), "betas", self.betas, "from 0 to below 1")
        _parse_stages(self.length_warmup)
        if self.max_steps is None and self.max_minutes is None:
            raise UserError("a run needs an end: give max_steps, max_minutes or both")

    @property
    def stages(self) -> tuple[tuple[int, float], ...]:
        """The parsed ``length_warmup``: lengths, and the share of the run at which each ends."""
        return _parse_stages(self.length_warmup)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run. Its three parts share no field name, so that files and flags are flat."""

    model: ModelConfig
    data: DataConfig
    training: TrainingConfig

    def __post_init__(self):
        shape = self.data.image_shape
        _check_is_one_image(self.model.seq_len, shape)
        if shape and self.training.length_warmup:
            raise UserError(
                f"length_warmup is '{self.training.length_warmup}', and an image of {_by(shape)} is"
                " one sequence, which is not cut; leave --length_warmup out"
            )

    def to_flat(self) -> dict[str, Any]:
        """All settings in one dictionary of plain YAML values."""
        parts = (self.data, self.model, self.training)
        flat = {name: value for part in parts for name, value in asdict(part).items()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in flat.items()}

    @classmethod
    def from_flat(cls, flat: dict[str, Any]) -> "RunConfig":
        """The inverse of ``to_flat``.

        Raises:
            UserError: a setting that does not exist, or a value outside its limits.
        """
        parts = {"model": ModelConfig, "data": DataConfig, "training": TrainingConfig}
        known = {f.name: key for key, part in parts.items() for f in fields(part)}
        settings: dict[str, dict[str, Any]] = {key: {} for key in parts}
        for name, value in flat.items():
            if name not in known:
                raise UserError(
                    f"there is no setting '{name}'; the settings are {', '.join(known)}"
                )
            settings[known[name]][name] = tuple(value) if isinstance(value, list) else value
        try:
            data = DataConfig(**settings["data"])
            # Said before a grid of positions is found too small for a sequence that is too long.
            _check_is_one_image(settings["model"].get("seq_len"), data.image_shape)
            return cls(**{key: part(**settings[key]) for key, part in parts.items()})
        except TypeError as error:  # a comparison met a value of another type
            raise UserError(f"a setting has a value of the wrong type: {error}") from error
