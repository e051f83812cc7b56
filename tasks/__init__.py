"""What each stage of a generation does: read tables, call the library, write tables."""
