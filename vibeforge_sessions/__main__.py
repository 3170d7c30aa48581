"""``python -m vibeforge_sessions``, equivalent to ``vibeforge-sessions``."""

from __future__ import annotations

from vibeforge_sessions.cli import main

if __name__ == "__main__":
    main()
