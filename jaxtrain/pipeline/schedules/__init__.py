"""One class a paper. A new schedule is a new file here; `catalog` finds it."""
