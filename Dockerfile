# An image to train in, with the versions of constraints.txt:
#   docker build --tag proj .
#   docker run --rm --gpus all --shm-size 8g --volume "$PWD/data:/app/data" \
#       --volume "$PWD/lightning_logs:/app/lightning_logs" proj fit --config configs/digits.yaml
# Without a GPU, leave `--gpus all` out. A bundle of `export` has a smaller one, which only predicts.
FROM python:3.11-slim
# g++ compiles training steps. Debian keeps no old versions to ask for.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml constraints.txt Makefile README.md ./
COPY src ./src
RUN make .venv/installed
COPY configs ./configs
ENTRYPOINT [".venv/bin/python", "-m", "proj"]
CMD ["--help"]
