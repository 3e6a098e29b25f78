"""The benchmark: declarations, steps, tasks, metrics, statistics and verdicts."""
