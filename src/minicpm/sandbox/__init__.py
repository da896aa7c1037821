"""Child processes with limits of time, memory and output, for programs by strangers.

`process.py` starts a child and talks to it; `child.py` is the child, which takes its limits before it looks at the
request. What is computed there is a job, a file of the room that needs it, such as chat/template_job.py.
"""
