"""How a training runs: its steps, its workers, its evaluation."""
