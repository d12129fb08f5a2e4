"""From parameters to parameters: import and export of other formats."""
