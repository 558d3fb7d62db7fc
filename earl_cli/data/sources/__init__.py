"""Sources of rows: JSON lines and CSV, Parquet, WebDataset tars, data sets saved by `datasets`, and the Hub."""
