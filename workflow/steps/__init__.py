"""The steps, in order: fetch, prepare, run_method, score, then judge and tables, and figures.

Each is a program (``python -m workflow.steps.<name> --help``) that reads what the steps before it wrote
and leaves a record or a table. The file that Snakemake tracks is the record (``fetch.json``,
``prepared.json``, ``run.json``): it is written last, by an atomic rename, and names the files that
belong to it with their checksums. So a failure is a record too, and never an empty stand-in.
"""
