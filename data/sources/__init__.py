"""What `prepare` and `import` read: folders, tars, tables, frame folders, WebDatasets of others."""
