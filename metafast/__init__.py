"""metafast."""
