# Seurat v4: anchors between batches (Stuart et al. 2019), labels from a reference (Hao et al. 2021).
#
# The same command line and the same files as every other method, see README.md; hdf5r reads and writes them.
# The steps are those of Seurat's own integration and mapping vignettes with their defaults, but for two
# things, which hold for every method here: the genes are the suite's highly variable ones, and the values are
# its log(1 + counts per 10,000), which is what NormalizeData computes from the counts of all genes.

suppressPackageStartupMessages({
  library(hdf5r)
  library(Matrix)
})
options(future.globals.maxSize = Inf)
invisible(Sys.setlocale("LC_COLLATE", "C"))  # the order of batches must not depend on the machine's language

refuse <- function(...) stop(..., call. = FALSE)

not_applicable <- function(...) {
  message(...)
  quit(status = 99)
}

# ---------------------------------------------------------------- files

column <- function(obs, name, task) {
  # strings; NA where a categorical or a nullable column has no value
  if (!name %in% names(obs)) {
    found <- setdiff(names(obs), h5attr(obs, "_index"))
    found <- if (length(found)) paste(found, collapse = ", ") else "none"
    refuse("obs column '", name, "' is missing (found: ", found, "); ", task, " needs it")
  }
  node <- obs[[name]]
  if (!inherits(node, "H5Group")) return(as.character(node[]))
  if ("values" %in% names(node)) {
    return(replace(as.character(node[["values"]][]), which(node[["mask"]][] == TRUE), NA))
  }
  codes <- node[["codes"]][]
  codes[codes < 0] <- NA
  as.character(node[["categories"]][])[codes + 1]
}

genes_by_cells <- function(node, chosen, cells_at_once = 4096) {
  # Cells x genes on disk is genes x cells to R. Only the chosen genes stay in memory.
  bad <- 0
  keep <- function(block, values) {
    bad <<- bad + sum(!is.finite(values))
    as(block[chosen, , drop = FALSE], "CsparseMatrix")
  }
  form <- if (inherits(node, "H5Group")) h5attr(node, "encoding-type") else "array"
  shape <- if (form == "array") rev(node$dims) else as.numeric(h5attr(node, "shape"))
  if (form == "csc_matrix") {
    x <- as.numeric(node[["data"]][])
    ends <- as.numeric(node[["indptr"]][])
    X <- keep(t(sparseMatrix(node[["indices"]][] + 1, p = ends, x = x, dims = shape)), x)
  } else {
    ends <- if (form == "csr_matrix") as.numeric(node[["indptr"]][])
    X <- do.call(cbind, lapply(seq(1, shape[1], by = cells_at_once), function(from) {
      to <- min(from + cells_at_once - 1, shape[1])
      if (form == "array") {
        block <- node[, from:to, drop = FALSE]
        return(keep(block, block))
      }
      p <- ends[from:(to + 1)] - ends[from]
      at <- ends[from] + seq_len(p[length(p)])
      part <- function(name) if (length(at)) as.numeric(node[[name]][at]) else numeric(0)
      x <- part("data")
      keep(sparseMatrix(part("indices") + 1, p = p, x = x, dims = c(shape[2], to - from + 1)), x)
    }))
  }
  if (bad > 0) {
    said <- if (bad == 1) "1 value that is" else paste(bad, "values that are")
    refuse("X holds ", said, " not finite; expected log-normalised values")
  }
  X
}

read_input <- function(path, task, scope) {
  if (!file.exists(path)) refuse("there is no file ", path)
  not_h5 <- function(error) refuse(path, " is not a readable h5ad file")
  file <- tryCatch(H5File$new(path, mode = "r"), error = not_h5)
  on.exit(file$close_all())
  obs <- file[["obs"]]
  needed <- list(integration = "batch", annotation = c("split", "label"))[[task]]
  columns <- sapply(needed, function(name) column(obs, name, task), simplify = FALSE)
  if (!scope %in% c("train", "all")) refuse("feature_scope must be train or all, not '", scope, "'")
  wanted <- if (scope == "all") "highly_variable_all" else "highly_variable"
  if (!wanted %in% names(file[["var"]])) wanted <- "highly_variable"
  if (!wanted %in% names(file[["var"]])) refuse("var column 'highly_variable' is missing")
  X <- genes_by_cells(file[["X"]], which(file[["var"]][[wanted]][] == TRUE))
  # names of our own: Seurat changes underscores, and a cell's name may stand in two batches
  dimnames(X) <- list(paste0("g", seq_len(nrow(X))), paste0("c", seq_len(ncol(X))))
  c(list(X = X, cells = as.character(obs[[h5attr(obs, "_index")]][])), columns)
}

write_output <- function(path, cells, info, embedding = NULL, labels = NULL) {
  part <- paste0(path, ".part")
  unlink(part)
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
  n_columns <- H5S$new("simple", dims = as.integer(!is.null(labels)))
  columns <- obs$create_attr("column-order", dtype = text, space = n_columns)
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
  if (!file.rename(part, path)) refuse("cannot write ", path)
}

# ---------------------------------------------------------------- what both tasks share

SMALLEST <- 10  # cells of a batch or a side, because anchors are looked for among neighbours

need_seurat <- function() {
  suppressPackageStartupMessages(library(Seurat))
  found <- c(Seurat = packageVersion("Seurat")$major, SeuratObject = packageVersion("SeuratObject")$major)
  if (any(found != 4)) {
    refuse("found Seurat ", found[["Seurat"]], " with SeuratObject ", found[["SeuratObject"]],
           "; expected version 4 of both, which envs/seurat.yaml has: version 5 is another program")
  }
}

object_of <- function(X) {
  object <- CreateSeuratObject(counts = X)  # the slot of counts is read by no step below
  SetAssayData(object, slot = "data", new.data = X)
}

varying <- function(X) rowMeans(X^2) - rowMeans(X)^2 > 1e-10

lowered <- function(asked, given, because) {
  # sentences about the parameters that these cells did not allow
  name <- names(asked)[asked > given]
  sprintf("%s lowered from %g to %g: %s", name, asked[name], given[name], because)
}

# ---------------------------------------------------------------- integration

integrate <- function(anchors, dims, k_weight) {
  # Seurat stops where fewer cells of a batch are in anchors than it shall weigh, k.weight. How many there are
  # is known only then, because batches are added to others already joined: look, and try again with that.
  repeat {
    anchored <- NA
    look <- function(error) {
      for (frame in sys.frames()) {
        if (!is.null(frame$anchors.cells2)) anchored <<- length(frame$anchors.cells2)
      }
    }
    found <- tryCatch(withCallingHandlers(
      IntegrateData(anchors, dims = dims, k.weight = k_weight, verbose = FALSE), error = look
    ), error = function(error) error)
    if (!inherits(found, "error")) return(list(object = found, k_weight = k_weight))
    if (is.na(anchored) || anchored >= k_weight) stop(found)
    if (anchored < 3) refuse("a batch has ", anchored, " cells in anchors to the others, too few")
    k_weight <- anchored
  }
}

integration <- function(given, params) {
  if (anyNA(given$batch)) refuse("obs column 'batch': ", sum(is.na(given$batch)), " cells have no batch")
  sizes <- table(given$batch)
  if (length(sizes) < 2) not_applicable("there is one batch only, and Seurat's anchors lie between two")
  least <- min(sizes)
  if (least < SMALLEST) {
    not_applicable("batch '", names(sizes)[which.min(sizes)], "' has ", least, " cells, and Seurat needs ",
                   SMALLEST, " to find neighbours among")
  }
  reduction <- params$reduction
  if (!reduction %in% c("cca", "rpca")) refuse("reduction must be cca or rpca, not '", reduction, "'")
  need_seurat()
  genes <- rownames(given$X)
  parts <- lapply(names(sizes), function(name) given$X[, given$batch == name, drop = FALSE])
  both <- crossprod(sapply(parts, varying))  # genes that vary in both batches of each pair
  asked <- c(dims = params$dims, k.anchor = params$k_anchor, k.score = 30)
  can <- pmin(asked, c(min(least, both) - 1, least - 1, least - 1))
  if (can[["dims"]] < 2) not_applicable("two batches have ", min(both), " genes that vary in both, too few")
  dims <- seq_len(can[["dims"]])
  objects <- lapply(parts, object_of)
  if (reduction == "rpca") {
    objects <- lapply(objects, function(object) {
      object <- ScaleData(object, features = genes, verbose = FALSE)
      # approx: irlba, which must be asked for a few of the components only
      RunPCA(object, features = genes, npcs = max(dims), verbose = FALSE,
             approx = max(dims) < least / 2)
    })
  }
  anchors <- FindIntegrationAnchors(
    objects, anchor.features = genes, reduction = reduction, dims = dims, k.anchor = can[["k.anchor"]],
    k.filter = params$k_filter, k.score = can[["k.score"]], verbose = FALSE
  )
  found <- integrate(anchors, dims, params$k_weight)
  whole <- ScaleData(found$object, verbose = FALSE)
  n <- min(params$dims, ncol(whole) - 1, sum(varying(GetAssayData(whole))) - 1)
  whole <- RunPCA(whole, npcs = n, verbose = FALSE, approx = n < min(dim(whole)) / 2)
  embedding <- Embeddings(whole, "pca")[colnames(given$X), , drop = FALSE]
  list(embedding = unname(embedding), cells = given$cells, info = list(
    n_anchors = nrow(anchors@anchors) / 2,  # each stands there twice
    bridge = c(lowered(asked, can, "the smallest batch, or the genes that vary in all, allow no more"),
               lowered(c(k.weight = params$k_weight), c(k.weight = found$k_weight),
                       "no more cells of some batch are in anchors"))
  ))
}

# ---------------------------------------------------------------- annotation

annotation <- function(given, params) {
  for (side in c("reference", "query")) {
    if (!side %in% given$split) {
      found <- toString(sQuote(unique(given$split), FALSE))
      refuse("obs column 'split': no cell is '", side, "' (found: ", found, ")")
    }
  }
  query <- given$split %in% "query"
  reference <- given$split %in% "reference"
  labels <- given$label[reference]
  if (anyNA(labels)) refuse("obs column 'label': ", sum(is.na(labels)), " reference cells have no label")
  if (length(unique(labels)) < 2) not_applicable("the reference has one label only: nothing to tell apart")
  least <- min(sum(query), sum(reference))
  if (least < SMALLEST) {
    not_applicable("there are ", sum(reference), " reference and ", sum(query), " query cells, and Seurat ",
                   "needs ", SMALLEST, " of each to find neighbours among")
  }
  need_seurat()
  X <- given$X[, reference]
  asked <- c(dims = params$dims, k.anchor = params$k_anchor, k.score = 30)
  can <- pmin(asked, c(min(sum(reference), sum(varying(X))) - 1, least - 1, least - 1))
  if (can[["dims"]] < 2) not_applicable(sum(varying(X)), " genes vary in the reference, which is too few")
  dims <- seq_len(can[["dims"]])
  anchors <- FindTransferAnchors(
    object_of(X), object_of(given$X[, query]), features = rownames(X), reduction = "pcaproject",
    npcs = max(dims), dims = dims, k.anchor = can[["k.anchor"]], k.filter = params$k_filter,
    k.score = can[["k.score"]], approx.pca = max(dims) < min(dim(X)) / 2, verbose = FALSE
  )
  k_weight <- min(params$k_weight, length(unique(anchors@anchors[, "cell2"])))  # Seurat trips over more
  found <- TransferData(anchors, refdata = labels, dims = dims, k.weight = k_weight, verbose = FALSE)
  list(labels = found$predicted.id, cells = given$cells[query], info = list(
    n_anchors = nrow(anchors@anchors),
    bridge = c(lowered(asked, can, "the reference, the query or the genes that vary allow no more"),
               lowered(c(k.weight = params$k_weight), c(k.weight = k_weight),
                       "no more query cells are in anchors"))
  ))
}

# ---------------------------------------------------------------- the command line

main <- function(words) {
  args <- as.list(setNames(words[c(FALSE, TRUE)], sub("^--", "", words[c(TRUE, FALSE)])))
  for (name in c("task", "input", "output", "params")) {
    if (is.null(args[[name]])) refuse("--", name, " is missing")
  }
  declared <- list(integration = c("reduction", "dims", "k_anchor", "k_filter", "k_weight"),
                   annotation = c("dims", "k_anchor", "k_filter", "k_weight", "feature_scope"))
  if (!args$task %in% names(declared)) refuse("--task must be integration or annotation, not ", args$task)
  not_json <- function(error) refuse("--params is not JSON: ", args$params)
  params <- tryCatch(jsonlite::fromJSON(args$params), error = not_json)
  lacking <- setdiff(declared[[args$task]], names(params))
  if (length(lacking)) refuse("--params lacks ", toString(lacking))
  # As Seurat seeds its own steps for all its users. Other seeds change where approximate SVDs start, which moved
  # no label and no score by more than 0.002 on 2,433 cells of PBMC; every run is the same, and tables say so.
  set.seed(42)
  given <- read_input(args$input, args$task, if (args$task == "annotation") params$feature_scope else "train")
  result <- list(integration = integration, annotation = annotation)[[args$task]](given, params)
  if (any(!is.finite(result$embedding))) refuse("Seurat returned values that are not finite")
  result$info$n_genes <- nrow(given$X)
  result$info$bridge <- as.list(c("genes and normalisation are the suite's, the same for every method",
                                  result$info$bridge))
  write_output(args$output, result$cells, result$info, embedding = result$embedding, labels = result$labels)
}

if (sys.nframe() == 0) {  # not when a test reads the functions
  tryCatch(suppressWarnings(main(commandArgs(TRUE))), error = function(error) {
    where <- conditionCall(error)
    where <- if (is.null(where)) "" else paste0(deparse(where[[1]])[1], ": ")
    message("Error: ", where, gsub("\\s+", " ", conditionMessage(error)))
    quit(status = 1)
  })
}
