"""The running of a training: its loop, its steps, its workers and its evaluation."""
