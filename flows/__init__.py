"""The only rooms that know Prefect: thin tasks, one flow per file, the command line."""
