"""Sources of examples: files, folders, tars and data sets of the Hub, each read from any row on."""
