"""What a run will need before it is started: compilation for absent hardware, memory, collectives, peaks."""
