"""What the modules for maps ask of their arguments and inputs: each refusal is one sentence."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparse_tx.accounting import heads
from sparse_tx.errors import UserError, UserTypeError, nearest

# The axes of an input, by the number of those that positions have.
AXES = {1: "(B, C, L)", 2: "(B, C, H, W)", 3: "(B, C, T, H, W)"}


def require_count(name: str, value: int, owner: str) -> None:
    """Raise a ``UserError`` unless ``value`` is a whole number, 1 or more."""
    heads.require_count(f"{name} of {owner}", value)


def require_reduction(reduction: int, channels: int, owner: str) -> None:
    """Raise a ``UserError`` unless both are counts, and ``reduction`` divides ``channels``."""
    require_count("channels", channels, owner)
    require_count("reduction", reduction, owner)
    if channels % reduction:
        divisor = max(n for n in range(1, min(reduction, channels) + 1) if channels % n == 0)
        raise UserError(
            f"reduction {reduction} of {owner} does not divide its {channels} channels; take one"
            f" that does, such as {divisor}"
        )


def require_choice(name: str, value: str, choices: Iterable[str], owner: str) -> None:
    """Raise a ``UserError`` unless ``value`` is one of the words ``choices``."""
    choices = tuple(choices)
    if not isinstance(value, str):
        raise UserTypeError(
            f"{name} of {owner} is {value!r}; it must be one of the words {', '.join(choices)}"
        )
    if value not in choices:
        raise UserError(
            f"unknown {name} '{value}' of {owner}: {nearest(value, choices)}it is one of"
            f" {', '.join(choices)}"
        )


def require_maps(x: Tensor, channels: int | None, owner: str, dims: int = 2) -> None:
    """Raise unless ``x`` is a batch of maps.

    Args:
        x: what a module was called with.
        channels: how many it was built for; None takes any number.
        owner: the module's name.
        dims: axes of a position.

    Raises:
        UserTypeError: ``x`` is no floating-point tensor.
        UserError: it has another number of axes or channels, or an empty one.
    """
    if not isinstance(x, Tensor):
        raise UserTypeError(
            f"{owner} was called with {type(x).__name__}; it takes a tensor {AXES[dims]}"
        )
    if not x.is_floating_point():
        raise UserTypeError(
            f"{owner} was called with {x.dtype}; convert it to a floating-point type, as x.float()"
            " does"
        )
    shape = tuple(x.shape)
    if len(shape) != dims + 2:
        way_out = ", where x.unsqueeze(0) is a batch of one" if len(shape) == dims + 1 else ""
        raise UserError(f"{owner} was called with shape {shape}; it takes {AXES[dims]}{way_out}")
    if 0 in shape:
        raise UserError(f"{owner} was called with shape {shape}; no dimension may be empty")
    if channels is not None and shape[1] != channels:
        raise UserError(
            f"{owner} was built for {channels} channels and called with {shape[1]}, in shape"
            f" {shape}; build it for {shape[1]}"
        )


def require_variance(x: Tensor, norm: nn.Module, owner: str, other_way: str = "") -> None:
    """Raise a ``UserError`` where a batch norm in training has one value for each channel.

    Args:
        x: the module's input; the norm's has as many positions.
        norm: the module's batch norm, or what has taken its place.
        owner: the module's name.
        other_way: to do without the norm's variance.
    """
    # Of several machines, SyncBatchNorm knows the others' values.
    if not (norm.training and isinstance(norm, _BatchNorm)) or isinstance(norm, nn.SyncBatchNorm):
        return
    if x.numel() == x.shape[1]:
        raise UserError(
            f"{owner} was called in training with shape {tuple(x.shape)}, one value for each"
            " channel, of which its batch norm has no variance; give a larger batch or map,"
            f" {other_way and other_way + ', '}or call eval()"
        )
