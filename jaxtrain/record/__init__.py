"""What a run folder records of its configuration: its text, and copies of the files that it names."""
