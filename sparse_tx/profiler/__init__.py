"""Measurement beside accounting: sweeps over lengths, fits, and reports of them."""
