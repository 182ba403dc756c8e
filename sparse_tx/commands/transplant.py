"""``sparse-tx transplant``: a trained model under another pattern, and what that costs."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.progress import Progress

from sparse_tx.checkpoint import (
    Checkpoint,
    find_checkpoint,
    load_checkpoint,
    positions_in_words,
    read_checkpoint,
    save_checkpoint,
    transplant_config,
    transplant_weights,
)
from sparse_tx.commands.checkpoint_flags import add_checkpoint
from sparse_tx.commands.console import PlainConsole
from sparse_tx.commands.json_file import check_json_file, write_json
from sparse_tx.commands.preparing import prepare_with_status, with_usable_cache
from sparse_tx.commands.run_folder import (
    check_is_no_checkpoint,
    check_is_no_file,
    check_is_nobody_elses,
    holds_run,
    prepare_folder,
)
from sparse_tx.commands.shell import CommandParser, called_as, choose_device, run_command
from sparse_tx.config import ModelConfig, RunConfig
from sparse_tx.data import Corpus
from sparse_tx.errors import UserError
from sparse_tx.evaluation import Score, score

DESCRIPTION = """Put trained weights under another pattern, such as fixed:128:32 after dense, or
another stride or ratio of layers, and say how many bits per byte that costs: both patterns are
scored on the same validation bytes, in windows of the same length. Nothing is trained; with --out
the result is left for train --init_from, which fine-tunes it, and for sample."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit status 0, 2 after a mistake in what was given, 130 after Ctrl-C."""
    return run_command(_transplant, argv)


def _parser() -> CommandParser:
    parser = CommandParser(prog="sparse-tx transplant", description=DESCRIPTION)
    add = parser.add_argument
    add_checkpoint(parser)
    add("--pattern", type=str, required=True, help="The new pattern, such as fixed:128:32.")
    add("--seq_len", type=int, help="Score both in windows of this length (that of the run).")
    add("--data", type=str, help="Source whose validation split is scored (that of the run).")
    add("--eval_bytes", type=int, help="Bytes at its start that are scored (as the run does).")
    add("--out", type=str, help="New run directory to leave the model in under the new pattern.")
    add("--json", type=str, help="File to write the figures to.")
    add("--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="Where to compute.")
    add("--engine", type=str, help="Attention engine (that of the run); auto takes the fastest.")
    return parser


def _transplant(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    if args.eval_bytes is not None and args.eval_bytes < 1:
        raise UserError(f"eval_bytes is {args.eval_bytes}; it must be 1 or more")
    _check_outputs(args)
    device = choose_device(args.device)
    source = read_checkpoint(find_checkpoint(args.checkpoint, args.which))
    before = transplant_config(source.config.model, seq_len=args.seq_len)
    after = transplant_config(source.config.model, seq_len=args.seq_len, pattern=args.pattern)
    data = with_usable_cache(source.config.data)
    data = replace(data, data=args.data or data.data)
    config = replace(source.config, data=data, model=after)
    console = PlainConsole()
    console.say(f"weights    {source.path}, step {source.step:,}")
    console.say(f"positions  {positions_in_words(source.config.model, after)}")
    corpus = prepare_with_status(console, config, source.tokenizer)
    max_bytes = args.eval_bytes or source.config.training.eval_bytes
    scores = []
    for name, model_config in (("before", before), ("after", after)):
        model, _, _ = load_checkpoint(
            source.path,
            device=device,
            engine=args.engine,
            pattern=model_config.pattern,
            seq_len=model_config.seq_len,
        )
        result = _score(console, model, corpus, max_bytes)
        console.say(f"{name:9}  {result.bpb:.4f} bits per byte under {model_config.pattern}")
        scores.append(result)
    change = scores[1].bpb - scores[0].bpb
    console.say(f"change     {change:+.4f} bits per byte, on validation ({scores[0].protocol})")
    if args.json:
        figures = _figures(source, before, after, corpus, scores)
        write_json(args.json, figures)
        console.say(f"wrote      {args.json}")
    if args.out:
        _save(Path(args.out), source, config, scores[1])
        train = called_as("train_lm.py", "train")
        console.say(
            f"saved      {args.out}; to fine-tune:"
            f" {train} --init_from {args.out} --out {args.out}-tuned"
        )
    return 0


def _check_outputs(args: Any) -> None:
    if args.out is not None:
        if not args.out.strip():
            raise UserError("--out is empty; name a folder")
        folder = Path(args.out)
        check_is_no_checkpoint(folder)
        check_is_no_file(folder)
        if holds_run(folder):
            raise UserError(f"{folder} already holds a run; name another folder with --out")
        check_is_nobody_elses(folder)
    if args.json is not None:
        check_json_file(args.json)


def _score(console: PlainConsole, model, corpus: Corpus, max_bytes: int | None) -> Score:
    hidden = not console.is_terminal
    with Progress(console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("scoring")
        return score(
            model,
            corpus.valid,
            corpus.tokenizer.token_bytes,
            max_bytes=max_bytes,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def _figures(
    source: Checkpoint,
    before: ModelConfig,
    after: ModelConfig,
    corpus: Corpus,
    scores: list[Score],
) -> dict[str, Any]:
    return {
        "checkpoint": str(source.path),
        "step": source.step,
        "pattern_before": before.pattern,
        "pattern_after": after.pattern,
        "bpb_before": scores[0].bpb,
        "bpb_after": scores[1].bpb,
        "change": scores[1].bpb - scores[0].bpb,
        "bytes": scores[0].bytes,
        "seq_len": after.seq_len,
        "protocol": scores[0].protocol,
        "positions": positions_in_words(source.config.model, after),
        "data": corpus.spec,
        "data_sha256": corpus.fingerprint,
        "tokenizer": corpus.tokenizer.fingerprint,
    }


def _save(run_dir: Path, source: Checkpoint, config: RunConfig, result: Score) -> None:
    """Leave the weights as a run that has taken no step yet."""
    training = replace(config.training, init_from=str(source.path))
    config = replace(config, training=training)
    prepare_folder(run_dir, config)
    save_checkpoint(
        run_dir,
        step=0,
        model_state=transplant_weights(source.weights, source.config.model, config.model),
        ema_state=None,
        config=config,
        tokenizer=source.tokenizer,
        training_state={},
        keep_last=1,
        valid_bpb=result.bpb if result.complete else None,
    )
