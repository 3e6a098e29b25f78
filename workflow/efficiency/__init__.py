"""Efficiency as a task: the models that are timed, the processes that time them, and what follows."""

#: The package without which a model cannot be built.
NEEDS = {"transformers": "transformers"}
