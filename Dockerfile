# The server. Weights and compiled kernels are in the volume /cache, so that the image holds programs alone.
#
#   docker build --build-arg TORCH_INDEX=URL -t whisper-at .
#   docker run -p 127.0.0.1:8000:8000 -v whisper-at:/cache whisper-at --model small
#
# TORCH_INDEX is one of PyTorch's own indexes of wheels, which its installation page names: that for CPUs alone, which
# makes the smallest image, or that of a CUDA version. Without it, the build for this platform in pip's index is taken.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/whisper-at
ENV PATH=/opt/whisper-at/bin:$PATH
WORKDIR /src
COPY requirements.lock ./
# in a layer of its own, which a change of the sources leaves alone
RUN pip install --constraint requirements.lock ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY . .
RUN pip install --constraint requirements.lock ".[serve]"

FROM python:${PYTHON}-slim
RUN useradd --uid 1000 --no-create-home --shell /usr/sbin/nologin whisper && install -d -o whisper -g whisper /cache
COPY --from=build /opt/whisper-at /opt/whisper-at
ENV PATH=/opt/whisper-at/bin:$PATH XDG_CACHE_HOME=/cache PYTHONUNBUFFERED=1
USER 1000
WORKDIR /tmp
VOLUME /cache
EXPOSE 8000
# the first start downloads the model
HEALTHCHECK --interval=30s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["whisper-at", "serve", "--host", "0.0.0.0"]
CMD ["--model", "base"]
