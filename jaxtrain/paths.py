"""What a field of a configuration that names files is annotated with, so that a run can go by the same files later."""

type FilePath = str
"""A file that the numbers of a run rest on. The run folder keeps a copy, which the run then goes by."""

type Glob = str
"""Files too many to copy, by a pattern or a URL. The run names them so that they are found from any working folder."""
