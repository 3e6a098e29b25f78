"""Data recipes: modules that turn downloaded files into a tidy dataset.

The contract
------------
``workflow/recipes/<name>.py`` has a number ``VERSION``, which grows when its result changes, and one public
function, ``load(files, entry)``. ``files`` maps the source names that the dataset declares to local paths
(an optional source may be absent); ``entry`` is the dataset's declaration, so that one recipe can serve
several datasets. The recipe never downloads anything. It returns an ``anndata.AnnData`` with

* ``layers["counts"]``: raw counts, ``scipy.sparse.csr_matrix`` of ``float32``. A dataset that declares
  ``values: lognorm`` has none;
* ``X``: nothing, unless the files' own log-normalised values matter (``values: lognorm``, and perturbation
  data): then csr of ``float32``;
* ``obs``, categorical of str, those that the dataset has: ``label`` (cell type), ``batch`` (two or more),
  ``split`` (reference or query), ``condition`` (perturbation), ``modality``. Other columns only where a
  task or an audit reads them, under their own names;
* ``obs_names``: unique; ``var_names``: gene symbols, made unique;
* ``var["gene_id"]``: Ensembl ids, where they are known;
* ``uns["recipe"]``: flat dict of plain str and numbers worth recording, such as what was dropped;
  ``uns["de"]``: lists of differentially expressed genes of a perturbation screen (``gears``).

``obsm``, ``varm``, ``obsp`` and ``raw`` are empty. A recipe of several modalities returns a
``mudata.MuData``: modalities ``rna``, ``atac``, ``protein``, each with ``layers["counts"]`` and no columns of
obs, and the columns above in the obs of the whole; ``varm["gene_activity"]`` of ``atac`` may map regions to
genes.

A large matrix may stay on disk (``_common.open_h5ad``): it is checked and written by blocks.

Wrong input raises ``ValueError`` with one sentence that names the file, the key, what was found and what was
expected. The step ``tidy`` checks the result against the declaration and adds ``uns["source"]``.
"""
