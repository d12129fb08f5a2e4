"""The command line: one file for each command. No other folder imports gin."""
