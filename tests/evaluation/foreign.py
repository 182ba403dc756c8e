"""Small models and tokenizers of another maker, drawn at random, as folders on disk."""

from pathlib import Path

import tokenizers
import torch

POSITIONS = 17
# Characters of one, two, three and four bytes; what merges have not seen is cut into bytes.
TEXT = "the cat ‰ the café; ☃ 😀 ünï\n\tthe  hat <0x41> é\u0301 " * 3


def byte_level_bpe(**settings):
    """Byte-level BPE with a few merges, most of them of ASCII letters."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=settings.pop("add_prefix_space", False)
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=270,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
    )
    tokenizer.train_from_iterator(["the cat, the hat, the café"], trainer)
    return wrapped(tokenizer, **{"eos_token": "<|end|>"} | settings)


def sentencepiece():
    """What SentencePiece makes: spaces as U+2581, one before the text, odd bytes by name."""
    pieces = ["<s>", "\u2581", *"theca", "\u2581the", *(f"<0x{n:02X}>" for n in range(256))]
    ids = {piece: number for number, piece in enumerate(pieces)}
    model = tokenizers.models.BPE(
        {"th": len(ids), "the": len(ids) + 1} | ids,
        [("t", "h"), ("th", "e"), ("\u2581", "the")],
        byte_fallback=True,
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.Prepend("\u2581"),
            tokenizers.normalizers.Replace(" ", "\u2581"),
        ]
    )
    return wrapped(tokenizer, bos_token="<s>")


def lower_case():
    """A tokenizer that does not keep its text."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    return wrapped(tokenizer)


def wrapped(tokenizer, **special):
    import transformers

    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def save_gpt2(folder: Path, tokenizer, seed=0, **settings):
    """Save a GPT-2 of one layer with weights far from uniform; return it."""
    import transformers

    torch.manual_seed(seed)
    config = dict(
        vocab_size=len(tokenizer),
        n_positions=POSITIONS,
        n_embd=6,
        n_layer=2,
        n_head=2,
        initializer_range=1.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config | settings)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
