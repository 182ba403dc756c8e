"""Continue a prompt with a trained model: ``python sample.py --help``."""

from sparse_tx.commands.sample import main

if __name__ == "__main__":
    raise SystemExit(main())
