"""The peer of `minicpm convert`: transformers loads a folder and saves it again.

python benchmarks/peers/transformers_save.py FOLDER DESTINATION
"""

import sys

from transformers import AutoModelForCausalLM

AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto").save_pretrained(sys.argv[2])
