"""Self-contained HTML pages: style, tables, plots. Nothing in them comes from elsewhere."""
