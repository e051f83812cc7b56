"""Where things lie: table schemas, the registry (git + DVC), lineage (DuckDB), tracking (MLflow), addresses."""
