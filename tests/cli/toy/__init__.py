"""A small tree of configurations, shaped like the real one, for the tests of files, overrides and rendering."""
