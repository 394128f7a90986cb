"""One self-contained page per run: records -> story -> sections with tables and charts -> HTML."""
