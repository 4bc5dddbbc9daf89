"""The results table: cells that are computed once each, kept as small files, and put together."""
