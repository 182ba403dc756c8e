"""Causal language models of other makers, from a Hugging Face folder, under the same protocols.

What is read is on disk: weights, configuration and tokenizer of one folder, never the network. The
package ``transformers`` runs them; it is imported when the first such model is loaded.
"""

import hashlib
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparse_tx.data.tokenizers import byte_of_symbol
from sparse_tx.errors import UserError
from sparse_tx.evaluation.token_losses import losses_in_chunks, window_within

# Bytes that the logits of one pass may take, if one window has no more: vocabularies are large.
_LOGITS_BYTES = 1 << 28
_MOST_TOKENS_AT_ONCE = 16_384
# Tokens whose probabilities exist at one time.
_CHUNK = 1024
# Where configurations say how many positions there are.
_LONGEST = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
# Tokens of the trial that looks for a leak, and how much of one is no rounding.
_TRIAL, _LEAK = 8, 1e-4


class HuggingFaceModel:
    """A Hugging Face causal language model as evaluation sees it (see ``LanguageModel``).

    A window begins with the tokenizer's BOS token, or with its EOS token if it has no other.

    Attributes:
        folder: where it was read.
        model: the ``transformers`` model, in float32 and eval mode.
        tokenizer: its ``transformers`` tokenizer.
        n_parameters: how many weights it has, shared ones once.
    """

    def __init__(self, folder: Path, model, tokenizer, seq_len: int):
        self.folder, self.model, self.tokenizer, self.seq_len = folder, model, tokenizer, seq_len
        self.n_parameters = sum(parameter.numel() for parameter in model.parameters())
        self._n_symbols = model.get_input_embeddings().weight.shape[0]
        self.start_token, self.start_in_words = _start(tokenizer)
        room = _LOGITS_BYTES // (4 * self._n_symbols)
        self.tokens_at_once = min(room, _MOST_TOKENS_AT_ONCE)

    def encode(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Turn text into ids, and say how many of its bytes each of them stands for.

        Every token is spelled out in bytes, also one that is part of a character, and what they
        spell must be ``data``: nothing less would make bits per byte comparable. One space that a
        tokenizer puts before the text is not counted.

        Args:
            data: the text, UTF-8.

        Returns:
            ids, and their bytes, which sum to ``len(data)``; both 1-D int64.

        Raises:
            UserError: the text is not UTF-8, the tokenizer does not keep all of it, or it makes
                ids that the model does not have.
        """
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"the byte 0x{data[error.start]:02x} at offset {error.start:,} of the text is not"
                f" UTF-8, which the tokenizer of '{self.folder}' needs; take another text"
            ) from None
        ids = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)
        ids = np.array(ids["input_ids"], np.int64)
        self._check_knows(ids)
        return ids, self._bytes_of(ids, data)

    def _check_knows(self, ids: np.ndarray) -> None:
        start = -1 if self.start_token is None else self.start_token
        if (highest := ids.max(initial=start)) >= self._n_symbols:
            raise UserError(
                f"the tokenizer of '{self.folder}' makes token {highest:,}, and its model has"
                f" {self._n_symbols:,}; they do not belong together"
            )

    def _bytes_of(self, ids: np.ndarray, data: bytes) -> np.ndarray:
        known = np.unique(ids).tolist()
        words = self.tokenizer.convert_ids_to_tokens(known)
        added = {number: word for word, number in self.tokenizer.get_added_vocab().items()}
        for spell in (_spell_byte_level, _spell_sentencepiece):
            try:
                spelled = {
                    # An added token stands for its name, letter by letter.
                    number: added[number].encode() if number in added else spell(word)
                    for number, word in zip(known, words, strict=True)
                }
            except KeyError:
                continue  # a symbol that this alphabet lacks
            parts = [spelled[number] for number in ids.tolist()]
            lengths = np.array([len(part) for part in parts], np.int64)
            found = b"".join(parts)
            if found == b" " + data and parts[0].startswith(b" "):
                lengths[0] -= 1
                return lengths
            if found == data:
                return lengths
        raise UserError(
            f"the tokenizer of '{self.folder}' does not keep this text as it is (what its tokens"
            " spell differs), so that bits per byte would be of another text; take a model whose"
            " tokenizer is lossless, such as byte-level BPE"
        )

    def token_losses(self, inputs: Tensor, targets: Tensor, wanted: Tensor) -> Tensor:
        """See ``LanguageModel``."""
        device = self.model.device
        logits = self._logits(inputs).flatten(0, 1)  # (B T, V)
        return losses_in_chunks(
            lambda rows: logits[rows].float(),
            targets.to(device),
            wanted.to(device),
            chunk=_CHUNK,
        )

    def _logits(self, inputs: Tensor) -> Tensor:
        return self.model(input_ids=inputs.to(self.model.device), use_cache=False).logits

    @torch.inference_mode()
    def check_is_causal(self) -> None:
        """Refuse a model that reads tokens which come later, as one that fills in gaps does.

        Raises:
            UserError: the logits before a token change with it.
        """
        length = min(_TRIAL, self.seq_len)
        if length < 2:
            return  # nothing comes later
        inputs = torch.arange(length)[None] % self._n_symbols
        other = inputs.clone()
        other[0, -1] = (other[0, -1] + 1) % self._n_symbols
        before, after = (self._logits(tokens)[:, :-1] for tokens in (inputs, other))
        if (before - after).abs().max() > _LEAK * before.abs().max():
            raise UserError(
                f"the model in '{self.folder}' reads tokens that come later: it is no causal"
                " language model, and its probabilities are not those of a text"
            )

    def weights_sha256(self) -> str:
        """SHA-256 of the file of weights; of all their bytes, by name, if there are several."""
        for pattern in ("model*.safetensors", "pytorch_model*.bin"):
            if paths := sorted(self.folder.glob(pattern)):
                break
        digest = hashlib.sha256()
        for path in paths:
            with path.open("rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
        return digest.hexdigest()


def load_hugging_face(
    folder: str | Path, *, device: str | torch.device = "cpu", seq_len: int | None = None
) -> HuggingFaceModel:
    """Load a causal language model and its tokenizer, as ``save_pretrained`` leaves them.

    The model computes in float32, whatever its weights are stored in. Code that lies in the folder
    is not run.

    Args:
        folder: holds ``config.json``, weights and the tokenizer's files.
        device: where the model is put.
        seq_len: tokens of a window, at most as many as the model has positions for.

    Raises:
        UserError: ``transformers`` is not installed; the folder holds no such model, or not all of
            its weights; the model is not causal, does not say how long a text may be where
            ``seq_len`` is not given, or takes fewer tokens than that.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"a Hugging Face model needs the package transformers ({error}); install it with pip"
            ' install "sparse_tx[hf]"'
        ) from None
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"there is no Hugging Face model in '{folder}': it has no config.json; give a folder"
            " that save_pretrained made"
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # of many libraries, which raise nothing more precise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"the Hugging Face model in '{folder}' cannot be loaded: {reason}"
        ) from error
    # What is missing would be drawn at random, with no more than a warning.
    missing = sorted(map(str, loading["missing_keys"]))
    if missing:
        raise UserError(
            f"the weights in '{folder}' are not all there: {len(missing):,} are missing, such as"
            f" {missing[0]}"
        )
    window = _window(model.config, folder, seq_len)
    found = HuggingFaceModel(folder, model.float().to(device).eval(), tokenizer, window)
    found.check_is_causal()
    return found


def _window(config, folder: Path, seq_len: int | None) -> int:
    """Tokens of a window: ``seq_len``, or as many as the model has positions for."""
    config = config.get_text_config()
    sizes = (getattr(config, name, None) for name in _LONGEST)
    longest = next((size for size in sizes if isinstance(size, int) and size > 0), None)
    if longest is None and seq_len is None:
        raise UserError(
            f"the model in '{folder}' does not say how long a text may be; give the tokens of a"
            " window with --seq_len"
        )
    return seq_len if longest is None else window_within(longest, seq_len)


def _start(tokenizer) -> tuple[int | None, str]:
    """The token that a window begins with, and the same in words."""
    for kind in ("bos", "eos"):
        number = getattr(tokenizer, f"{kind}_token_id")
        if number is not None:
            name = getattr(tokenizer, f"{kind}_token")
            return number, f"a window begins with the tokenizer's {kind.upper()} token {name}"
    return None, (
        "the tokenizer has no start token: a window begins with the token of the text before it,"
        " and the first token of the text is not scored"
    )


_BYTE_OF = byte_of_symbol()
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _spell_byte_level(word: str) -> bytes:
    """A token of byte-level BPE, one symbol for each byte."""
    return bytes(_BYTE_OF[symbol] for symbol in word)


def _spell_sentencepiece(word: str) -> bytes:
    """A token of SentencePiece, whose spaces are U+2581 and whose odd bytes have names."""
    if byte := _BYTE.fullmatch(word):
        return bytes.fromhex(byte[1])
    return word.replace("\u2581", " ").encode()
