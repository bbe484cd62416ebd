"""What becomes of a record: tables, files that other programs read, a page with plots, a history."""
