"""``python examples/judge``: see main.py."""

from __future__ import annotations

from main import main

raise SystemExit(main())
