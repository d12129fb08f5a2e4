"""What a run will need before it is started: ahead-of-time compilation, memory, collectives, peaks."""
