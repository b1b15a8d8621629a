"""What sounds, from pooled encoder states: heads, class sets, rows on the clock of the file, events, captions."""
