// Collects samples into pieces of a tenth of a second, as int16; brings rates that the server does not read to one.

class PcmProcessor extends AudioWorkletProcessor {
  constructor({ processorOptions: { rate } }) {
    super();
    this.step = sampleRate / rate;
    this.place = 0; // of the next sample, in those of the input
    this.last = 0;
    this.piece = new Int16Array(rate / 10);
    this.count = 0;
    this.level = 0;
  }

  process([[samples]]) {
    if (!samples) return true;
    while (this.place < samples.length) {
      const i = Math.floor(this.place), before = i ? samples[i - 1] : this.last;
      const value = before + (samples[i] - before) * (this.step === 1 ? 1 : this.place - i);
      this.piece[this.count++] = Math.max(-1, Math.min(1, value)) * 32767;
      this.level = Math.max(this.level, Math.abs(value));
      this.place += this.step;
      if (this.count === this.piece.length) this.send();
    }
    this.place -= samples.length;
    this.last = samples.at(-1);
    return true;
  }

  send() {
    const { buffer } = this.piece;
    this.port.postMessage({ samples: buffer, level: this.level }, [buffer]);
    this.piece = new Int16Array(this.count);
    this.count = this.level = 0;
  }
}

registerProcessor("pcm", PcmProcessor);
