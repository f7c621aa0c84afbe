"""Commands that the daemon runs: their supervision, what they print, what they may use."""
