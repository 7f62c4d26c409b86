"""Benchmarks: one script per question, ratios taken in one run. ``python -m benchmarks`` runs them."""
