"""One module a benchmark command."""
