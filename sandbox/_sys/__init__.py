"""The system-call layer: constants, one wrapper per system call, owned descriptors, probes. The only place with ctypes.

Importing this package is cheap: `calls` loads ctypes at the first system call that needs it.
"""

from __future__ import annotations
