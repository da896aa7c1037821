"""Child processes with limits on time, memory and output, for untrusted programs.

`process.py` starts a child and communicates with it. `child.py` is the child, which sets its limits before it handles
the request. The child runs a job, a file of the room that needs it, such as chat/template_job.py.
"""
