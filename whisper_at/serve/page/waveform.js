// The peaks of a recording, for its waveform.

export const PEAKS_PER_SECOND = 100;
const RATE = 8000;
const MAX_BYTES = 500e6; // the browser decodes the whole file into memory

/** The loudest sample of every hundredth of a second, 0…1; null where the browser cannot decode the file. */
export async function readPeaks(file) {
  if (file.size > MAX_BYTES) return null;
  try {
    const context = new OfflineAudioContext(1, 1, RATE);
    const audio = await context.decodeAudioData(await file.arrayBuffer());
    const size = RATE / PEAKS_PER_SECOND;
    const peaks = new Float32Array(Math.ceil(audio.length / size));
    for (let channel = 0; channel < audio.numberOfChannels; channel++) {
      const samples = audio.getChannelData(channel);
      for (let i = 0; i < samples.length; i++) {
        const value = Math.abs(samples[i]), place = Math.floor(i / size);
        if (value > peaks[place]) peaks[place] = value;
      }
    }
    const highest = peaks.reduce((a, b) => Math.max(a, b), 1e-3);
    return peaks.map(peak => peak / highest);
  } catch {
    return null;
  }
}
