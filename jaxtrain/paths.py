"""Annotations of configuration fields that name files, so that a resumed run reads the same files."""

type FilePath = str
"""A file that the results of a run depend on. The run folder keeps a copy, which the run reads from then on."""

type Glob = str
"""A pattern or a URL of files, too many to copy. The run names them so that they are found from any working folder."""

type Folder = str
"""The folder of another run. It is not copied; the run names it so that it is found from any working folder."""
