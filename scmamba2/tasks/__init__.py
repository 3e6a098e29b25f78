"""What users call: one class per task, with fit and predict or transform on AnnData."""
