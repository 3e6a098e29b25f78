"""Data recipes: one module per dataset, each turning downloaded files into one tidy AnnData.

The contract
------------
``workflow/recipes/<name>.py`` has one public function, ``load(files)``, where ``files`` maps the
source names that the dataset declares to local paths. The recipe never downloads anything. It
returns an ``anndata.AnnData`` of RNA only with

* ``X``: raw counts, ``scipy.sparse.csr_matrix`` of ``float32``; ``layers["counts"]`` is the same;
* ``obs["label"]``: cell type, categorical of str;
* ``obs["batch"]``: categorical of str, present only where there is more than one batch;
* ``obs_names``: unique; ``var_names``: gene symbols, made unique;
* ``var["gene_id"]``: Ensembl ids, where they are known;
* ``uns["recipe"]``: flat dict of plain str and numbers worth recording, such as thresholds.

``obsm``, ``varm``, ``obsp`` and ``raw`` are empty. Wrong input raises ``ValueError`` with one
sentence that names the file, the key, what was found and what was expected.

Recipes are imported as parts of this package (``workflow.recipes.<name>``).
"""
