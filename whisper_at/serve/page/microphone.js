// The microphone as pieces of int16 samples.

const RATES = [8000, 16000, 24000, 48000]; // that the server reads
const REASONS = {
  NotAllowedError: "The browser does not let this page use the microphone. Allow it in the address bar, and start again.",
  NotFoundError: "There is no microphone.",
  NotReadableError: "The microphone is used by another program, or does not answer.",
};

/** Open the microphone; onSamples(Int16Array, level) is called ten times a second. Returns {rate, close}. */
export async function openMicrophone(onSamples) {
  if (!navigator.mediaDevices || !window.AudioWorkletNode) {
    throw new Error("Browsers give the microphone to pages from https:// and from this machine (localhost) alone.");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false } });
  } catch (error) {
    throw new Error(REASONS[error.name] ?? `The microphone cannot be used: ${error.message}`);
  }
  const { context, source } = connect(stream);
  const rate = RATES.includes(context.sampleRate) ? context.sampleRate : 48000;
  try {
    await context.audioWorklet.addModule(new URL("page/pcm-worklet.js", document.baseURI));
    const node = new AudioWorkletNode(context, "pcm", { numberOfOutputs: 0, processorOptions: { rate } });
    node.port.onmessage = ({ data }) => onSamples(new Int16Array(data.samples), data.level);
    source.connect(node);
    await context.resume();
  } catch (error) {
    stream.getTracks().forEach(track => track.stop());
    await context.close();
    throw error;
  }
  const close = () => {
    stream.getTracks().forEach(track => track.stop());
    context.close();
  };
  return { rate, close };
}

/** At 16 kHz where the browser resamples microphones, else at the rate of the device. */
function connect(stream) {
  for (const options of [{ sampleRate: 16000 }, {}]) {
    const context = new AudioContext(options);
    try {
      return { context, source: context.createMediaStreamSource(stream) };
    } catch (error) {
      context.close();
      if (!options.sampleRate) throw error;
    }
  }
}
