"""`minicpm bench`: measure a model on this machine, report it, and describe the machine."""
