"""Checkpoints: write and read the files, choose which to keep, and resume from one."""
