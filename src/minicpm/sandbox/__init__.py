"""Child processes with limits of time, memory and output, for code and templates by strangers."""
