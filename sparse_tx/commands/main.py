"""``sparse-tx COMMAND``: all commands under one name."""

import sys
from importlib import import_module

from sparse_tx.commands.shell import USER_MISTAKE
from sparse_tx.errors import nearest

# A command's module is imported only when it is called: each brings heavy libraries of its own.
COMMANDS = {
    "train": "train a model",
    "sample": "continue a prompt with a trained model",
    "evaluate": "score a text in bits per byte, under stated protocols",
    "pattern": "show, count and check attention patterns",
    "transplant": "put a trained model under another pattern, and score both",
    "compress": "compress a file by a model's predictions",
    "decompress": "give back what compress was given",
    "audit": "prove that a model sees what its patterns allow, and nothing else",
    "serve": "answer requests over HTTP, as OpenAI's API does, with a page to try the model",
    "profile": "say what sequence lengths and patterns cost, predicted and measured",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first argument names; returns its exit status."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: sparse-tx COMMAND ...\n")
        print("\n".join(f"  {command:12}{what}" for command, what in COMMANDS.items()))
        print("\nsparse-tx COMMAND --help says more.")
        return 0
    if name not in COMMANDS:
        hint = f"{nearest(name, COMMANDS)}the commands are {', '.join(COMMANDS)}"
        print(f"error: unknown command '{name}': {hint}", file=sys.stderr)
        return USER_MISTAKE
    return import_module(f"sparse_tx.commands.{name}").main(rest)
