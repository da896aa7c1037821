"""A GGUF file rounded by llama.cpp itself; run by the Python of .venv-llamacpp: SOURCE DESTINATION FTYPE.

FTYPE is a number of llama_ftype, e.g. 15 for Q4_K_M.
"""

import ctypes
import sys

import llama_cpp as ll

source, destination, kind = sys.argv[1:]
params = ll.llama_model_quantize_default_params()
params.ftype, params.nthread = int(kind), 2
params.allow_requantize = True
code = ll.llama_model_quantize(source.encode(), destination.encode(), ctypes.byref(params))
sys.exit(int(code))
