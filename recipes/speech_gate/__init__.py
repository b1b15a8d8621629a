"""How much text Whisper invents where nobody speaks, and what the gate by tags changes, on speech and without it."""
