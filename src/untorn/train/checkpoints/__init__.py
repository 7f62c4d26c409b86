"""Checkpoint files: written, read, kept, and resumed from."""
