"""Print the text and the sounds of a recording.

python sample/transcribe_and_tag.py [FILE] [MODEL]
"""

import sys
from pathlib import Path

import whisper_at as whisper

file = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).with_name("street.ogg"))
name = sys.argv[2] if len(sys.argv) > 2 else "nano.en"

model = whisper.load_model(name)
result = model.transcribe(file, at_time_res=10)
tags = whisper.parse_at_label(result, top_k=3, p_threshold=-1)

for segment in result["segments"]:
    print(f"{segment['start']:6.2f} - {segment['end']:6.2f} s {segment['text']}")
print()
for row in tags:
    sounds = "; ".join(f"{label} ({logit:.2f})" for label, logit in row["audio tags"])
    print(f"{row['time']['start']:6.1f} - {row['time']['end']:6.1f} s  {sounds}")
