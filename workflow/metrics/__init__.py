"""The metrics: pure functions of arrays. One file per task; each function names its definition."""
