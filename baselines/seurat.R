# Seurat v4: anchors between batches (Stuart et al. 2019), transfer of labels from a reference (Hao et al. 2021).
#
# The same command line and the same files as every other method, see README.md; h5ad files are read and written
# with hdf5r. The steps are those of Seurat's own integration and mapping vignettes with their defaults, but for
# two things, which hold for every method here: the genes are the suite's highly variable ones, and the values
# are its log(1 + counts per 10,000), which is what NormalizeData computes.

suppressPackageStartupMessages({
  library(hdf5r)
  library(Matrix)
  library(Seurat)
})
options(warn = -1, future.globals.maxSize = Inf)

# ---------------------------------------------------------------- files

not_applicable <- function(reason) {
  message(reason)
  quit(status = 99)
}

column <- function(frame, name) {
  # strings, or the categories of a column, NA where a code is -1
  if (!name %in% names(frame)) stop("obs column '", name, "' is missing", call. = FALSE)
  node <- frame[[name]]
  if (!inherits(node, "H5Group")) return(as.character(node[]))
  codes <- node[["codes"]][]
  codes[codes < 0] <- NA
  as.character(node[["categories"]][])[codes + 1]
}

genes_by_cells <- function(node) {
  # cells x genes on disk, which is genes x cells to R
  if (!inherits(node, "H5Group")) return(as(node[, ], "CsparseMatrix"))
  shape <- h5attr(node, "shape")
  by_cell <- h5attr(node, "encoding-type") == "csr_matrix"
  values <- list(p = node[["indptr"]][], x = as.numeric(node[["data"]][]))
  other <- node[["indices"]][] + 1
  if (by_cell) sparseMatrix(i = other, p = values$p, x = values$x, dims = rev(shape))
  else t(sparseMatrix(i = other, p = values$p, x = values$x, dims = shape))
}

read_input <- function(path, scope) {
  file <- H5File$new(path, mode = "r")
  on.exit(file$close_all())
  obs <- file[["obs"]]
  names <- as.character(obs[[h5attr(obs, "_index")]][])
  X <- genes_by_cells(file[["X"]])
  bad <- sum(!is.finite(X@x))
  if (bad) stop("X holds ", bad, if (bad == 1) " value that is" else " values that are", " not finite", call. = FALSE)
  wanted <- if (scope == "all") "highly_variable_all" else "highly_variable"
  chosen <- which(file[["var"]][[wanted]][] == TRUE)
  X <- X[chosen, , drop = FALSE]
  # names of our own: Seurat changes underscores, and a name may stand in two batches
  dimnames(X) <- list(paste0("g", seq_len(nrow(X))), paste0("c", seq_len(ncol(X))))
  columns <- intersect(c("batch", "split", "label"), names(obs))
  list(X = X, cells = names, obs = sapply(columns, function(name) column(obs, name), simplify = FALSE))
}

write_output <- function(path, cells, info, embedding = NULL, labels = NULL) {
  part <- paste0(path, ".part")
  if (file.exists(part)) file.remove(part)
  file <- H5File$new(part, mode = "w")
  text <- H5T_STRING$new(size = Inf)$set_cset("UTF-8")
  say <- function(node, ...) {
    said <- list(...)
    for (key in names(said)) node$create_attr(key, said[[key]], dtype = text, space = H5S$new("scalar"))
  }
  strings <- function(group, name, values) {
    group$create_dataset(name, values, dtype = text)
    say(group[[name]], `encoding-type` = "string-array", `encoding-version` = "0.2.0")
  }
  say(file, `encoding-type` = "anndata", `encoding-version` = "0.1.0")
  obs <- file$create_group("obs")
  say(obs, `_index` = "_index", `encoding-type` = "dataframe", `encoding-version` = "0.2.0")
  strings(obs, "_index", cells)
  columns <- obs$create_attr("column-order", dtype = text, space = H5S$new("simple", dims = 1L * !is.null(labels)))
  if (!is.null(labels)) {
    strings(obs, "label_pred", labels)
    columns$write("label_pred")
  }
  for (name in c("obsm", "uns")) {
    say(file$create_group(name), `encoding-type` = "dict", `encoding-version` = "0.1.0")
  }
  if (!is.null(embedding)) {
    file[["obsm"]]$create_dataset("X_emb", t(embedding))
    say(file[["obsm/X_emb"]], `encoding-type` = "array", `encoding-version` = "0.2.0")
  }
  said <- as.character(jsonlite::toJSON(info, auto_unbox = TRUE))
  file[["uns"]]$create_dataset("info", said, dtype = text, space = H5S$new("scalar"), chunk_dims = NULL)
  say(file[["uns/info"]], `encoding-type` = "string", `encoding-version` = "0.2.0")
  file$close_all()
  invisible(file.rename(part, path))
}

# ---------------------------------------------------------------- the two tasks

object_of <- function(X) {
  object <- CreateSeuratObject(counts = X)  # the slot of counts is not read by any step below
  SetAssayData(object, slot = "data", new.data = X)
}

lowered <- function(k, what, run) {
  # k.weight neighbours are asked of every cell; where there are fewer anchors Seurat says so, or trips, and stops
  for (k in unique(c(k, floor(k / 2^(1:6)), 3))) {
    if (k < 3) next
    result <- tryCatch(run(k), error = function(e) e)
    if (!inherits(result, "error")) return(list(result = result, k = k))
    if (!grepl("k.weight|anchor|replacement length", conditionMessage(result))) break
  }
  stop(what, ": ", conditionMessage(result), call. = FALSE)
}

integration <- function(given, params) {
  batch <- given$obs$batch
  if (is.null(batch)) stop("obs column 'batch' is missing", call. = FALSE)
  sizes <- table(batch)
  if (length(sizes) < 2) not_applicable("there is one batch only, and Seurat's anchors lie between two")
  if (min(sizes) < 10) {
    not_applicable(paste0("batch '", names(sizes)[which.min(sizes)], "' has ", min(sizes),
                          " cells, and Seurat finds anchors in neighbourhoods of 10 at least"))
  }
  dims <- min(params$dims, min(sizes) - 1, nrow(given$X) - 1)
  genes <- rownames(given$X)
  objects <- lapply(names(sizes), function(name) object_of(given$X[, batch == name]))
  if (params$reduction == "rpca") {
    objects <- lapply(objects, function(object) {
      object <- ScaleData(object, features = genes, verbose = FALSE)
      RunPCA(object, features = genes, npcs = dims, verbose = FALSE, approx = dims < min(sizes) / 2)
    })
  }
  anchors <- FindIntegrationAnchors(
    objects, anchor.features = genes, reduction = params$reduction, dims = seq_len(dims), verbose = FALSE,
    k.anchor = params$k_anchor, k.filter = if (min(sizes) > params$k_filter) params$k_filter else NA,
    k.score = min(30, min(sizes) - 1)
  )
  found <- lowered(params$k_weight, "IntegrateData", function(k) {
    IntegrateData(anchors, dims = seq_len(dims), k.weight = k, verbose = FALSE)
  })
  whole <- found$result
  DefaultAssay(whole) <- "integrated"
  whole <- ScaleData(whole, verbose = FALSE)
  whole <- RunPCA(whole, npcs = dims, verbose = FALSE)
  embedding <- Embeddings(whole, "pca")[colnames(given$X), , drop = FALSE]
  list(embedding = unname(embedding), info = list(k_weight = found$k, n_anchors = nrow(anchors@anchors)))
}

annotation <- function(given, params) {
  query <- given$obs$split == "query"
  labels <- given$obs$label[!query]
  if (length(unique(labels)) < 2) not_applicable("the reference has one label only, so there is nothing to transfer")
  reference <- object_of(given$X[, !query])
  dims <- min(params$dims, sum(!query) - 1, nrow(given$X) - 1)
  anchors <- FindTransferAnchors(
    reference, object_of(given$X[, query]), features = rownames(given$X), reduction = "pcaproject", npcs = dims,
    dims = seq_len(dims), k.anchor = params$k_anchor, verbose = FALSE,
    k.filter = if (min(sum(query), sum(!query)) > params$k_filter) params$k_filter else NA,
    k.score = min(30, sum(query) - 1, sum(!query) - 1)
  )
  found <- lowered(params$k_weight, "TransferData", function(k) {
    TransferData(anchors, refdata = labels, dims = seq_len(dims), k.weight = k, verbose = FALSE)
  })
  list(labels = found$result$predicted.id, info = list(k_weight = found$k, n_anchors = nrow(anchors@anchors)))
}

# ---------------------------------------------------------------- the command line

words <- commandArgs(TRUE)
args <- as.list(setNames(words[c(FALSE, TRUE)], sub("^--", "", words[c(TRUE, FALSE)])))
tasks <- list(integration = integration, annotation = annotation)
if (!args$task %in% names(tasks)) stop("--task must be integration or annotation, not ", args$task, call. = FALSE)
params <- jsonlite::fromJSON(args$params)
set.seed(42)  # as Seurat seeds its own steps: the seed of the run would move the last digits and nothing else
given <- read_input(args$input, if (is.null(params$feature_scope)) "train" else params$feature_scope)
result <- tasks[[args$task]](given, params)
info <- c(result$info, list(
  n_genes = nrow(given$X),
  bridge = list("genes and normalisation are the suite's, the same for every method")
))
if (result$info$k_weight < params$k_weight) {
  info$bridge <- c(info$bridge, paste("k.weight lowered from", params$k_weight, "to", result$info$k_weight,
                                      "because there are too few anchors"))
}
cells <- if (args$task == "integration") given$cells else given$cells[given$obs$split == "query"]
write_output(args$output, cells, info, embedding = result$embedding, labels = result$labels)
