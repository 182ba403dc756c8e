"""Cut a stream of tokens into training windows, shuffle them, and resume exactly."""

import numpy as np
import torch

from sparse_tx.errors import UserError


class WindowLoader:
    """Batches of windows of ``seq_len`` tokens, every window once an epoch.

    Window w holds the targets ``tokens[o + w * seq_len : o + (w + 1) * seq_len]``; its inputs are
    the start symbol and the same tokens without the last, so that each target is predicted from
    what stands before it in the window. A window begins as evaluation and generation do: a model
    that met the start symbol only once in its life would be at a loss there. A stream rarely
    divides by ``seq_len``: each epoch begins at its own offset o within the remainder, so that no
    token is always left out. One of images, each as long as a window, does: o is 0.
    Order and offset come from a generator seeded by (seed, epoch).

    Args:
        tokens: 1-D array of token ids, memory-mapped or not.
        seq_len: tokens of a window.
        batch_size: windows of a batch.
        seed: of the order, 0 or more.
        start_token: what stands before the first token of a window.

    Raises:
        UserError: a size below 1, a negative seed, or a window longer than the stream.
    """

    def __init__(
        self, tokens: np.ndarray, *, seq_len: int, batch_size: int, seed: int, start_token: int
    ):
        for name, value, least in (
            ("seq_len", seq_len, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise UserError(f"{name} is {value}; it must be {least} or more")
        if seq_len > len(tokens):
            raise UserError(
                f"a window of seq_len {seq_len:,} tokens does not fit into a split of"
                f" {len(tokens):,}; take a shorter seq_len, a larger corpus or a larger share"
            )
        self._tokens = np.asarray(tokens)  # slices of a plain array cost less than of a memmap
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.seed = seed
        self.start_token = start_token
        self._begin_epoch(0)

    @property
    def windows_per_epoch(self) -> int:
        """How many windows an epoch visits."""
        return len(self._tokens) // self.seq_len

    @property
    def epoch(self) -> float:
        """How many epochs have been given out: 1.25 after one epoch and a quarter of the next."""
        return self._epoch + self._index / self.windows_per_epoch

    def next_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Give out the next ``batch_size`` windows, going on into the next epoch where one ends.

        Returns:
            inputs and targets, each (batch_size, seq_len) int64 on the CPU.
        """
        inputs, targets = np.empty((2, self.batch_size, self.seq_len), np.int64)
        for row in range(self.batch_size):
            if self._index == self.windows_per_epoch:
                self._begin_epoch(self._epoch + 1)
            begin = self._offset + int(self._order[self._index]) * self.seq_len
            targets[row] = self._tokens[begin : begin + self.seq_len]
            inputs[row, 0] = self.start_token
            inputs[row, 1:] = targets[row, :-1]
            self._index += 1
        return torch.from_numpy(inputs), torch.from_numpy(targets)  # (B, T), (B, T)

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands, in a few integers."""
        return {"epoch": self._epoch, "index": self._index, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where the loader that gave ``state`` stood; the next window is its next window.

        ``batch_size`` may differ.

        Raises:
            UserError: ``state`` is of another seed, ``seq_len`` or stream, or is incomplete.
        """
        for name, here in self._identity().items():
            if state.get(name) != here:
                raise UserError(
                    f"the saved place in the data has {name} {state.get(name)} and this run has"
                    f" {here}; resume with the same data, seq_len and seed, or start a new run"
                )
        epoch, index = state.get("epoch", -1), state.get("index", -1)
        if epoch < 0 or not 0 <= index <= self.windows_per_epoch:
            raise UserError(
                f"the saved place in the data, window {index} of epoch {epoch}, does not exist;"
                " resume from another checkpoint"
            )
        self._begin_epoch(epoch)
        self._index = index

    def _identity(self) -> dict[str, int]:
        return {"seed": self.seed, "seq_len": self.seq_len, "n_tokens": len(self._tokens)}

    def _begin_epoch(self, epoch: int) -> None:
        generator = np.random.default_rng([self.seed, epoch])
        remainder = len(self._tokens) % self.seq_len
        self._epoch, self._index = epoch, 0
        self._offset = int(generator.integers(remainder + 1))
        self._order = generator.permutation(self.windows_per_epoch)


class StagedLoader:
    """Windows that grow as a run goes on; every batch has as many tokens as any other.

    Short windows of many texts teach what stands nearby sooner than long ones of few texts do. Each
    length is a ``WindowLoader`` of its own, so that no window is met twice before all windows of
    its length were.

    Args:
        tokens, seed, start_token: as of ``WindowLoader``.
        seq_len: tokens of a window after all stages.
        batch_size: such windows of a batch.
        stages: lengths of shorter windows, and the share of the run at which each ends, ascending.

    Raises:
        UserError: as of ``WindowLoader``; a batch cannot be cut into a stage's windows.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        *,
        seq_len: int,
        batch_size: int,
        seed: int,
        start_token: int,
        stages: tuple[tuple[int, float], ...] = (),
    ):
        self._ends = (*(until for _, until in stages), float("inf"))
        self._loaders = []
        for length in (*(length for length, _ in stages), seq_len):
            if length > seq_len or batch_size * seq_len % length:
                raise UserError(
                    f"a batch of {batch_size} x {seq_len:,} tokens cannot be cut into windows of"
                    f" {length:,}; take a length that divides it and is at most {seq_len:,}"
                )
            self._loaders.append(
                WindowLoader(
                    tokens,
                    seq_len=length,
                    batch_size=batch_size * seq_len // length,
                    seed=seed,
                    start_token=start_token,
                )
            )

    @property
    def epoch(self) -> float:
        """How many times as many tokens have been given out as there are, over all lengths."""
        return sum(loader.epoch for loader in self._loaders)

    def next_batch(self, progress: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Give out the next windows of the stage that ``progress``, from 0 to 1, falls into.

        Returns:
            inputs and targets, each (windows, tokens) int64 on the CPU.
        """
        now = next(n for n, end in enumerate(self._ends) if progress < end)
        return self._loaders[now].next_batch()

    def state_dict(self) -> dict:
        """Where the loaders stand: the last one's state, and ``shorter``, those of the stages."""
        *shorter, last = (loader.state_dict() for loader in self._loaders)
        return last | {"shorter": shorter}

    def load_state_dict(self, state: dict) -> None:
        """Go on where the loader that gave ``state`` stood.

        Raises:
            UserError: as of ``WindowLoader``; ``state`` is of other stages.
        """
        shorter = state.get("shorter", [])
        if len(shorter) != len(self._loaders) - 1:
            raise UserError(
                f"the saved place in the data has {len(shorter)} lengths of shorter windows and"
                f" this run has {len(self._loaders) - 1}; resume with the same length_warmup"
            )
        for loader, saved in zip(self._loaders, (*shorter, state), strict=True):
            loader.load_state_dict(saved)
