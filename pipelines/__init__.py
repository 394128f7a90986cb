"""The work itself, as plain functions over small typed records."""
