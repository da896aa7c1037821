"""clang for other systems, as zig ships it with their headers; CMake's compiler in tests/cross.

zig takes processors by names of its own, so that one option of GCC's and clang's is spelled anew.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import ziglang

ZIG = str(Path(ziglang.__file__).with_name("zig"))

arguments = [part.replace("-march=armv8.2-a", "-mcpu=generic+v8_2a") for part in sys.argv[1:]]
os.execv(ZIG, [ZIG, "c++", *arguments])
