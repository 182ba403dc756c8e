"""Train a language model: ``python train_lm.py --help``."""

from sparse_tx.commands.train import main

if __name__ == "__main__":
    raise SystemExit(main())
