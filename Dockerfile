# Two images from one file: `api` holds no torch, `worker` adds the models. A stage with Node.js builds Studio, the page. The classic builder is enough: no cache mounts.
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
RUN useradd --uid 10001 --create-home reverie && install --directory --owner=reverie --group=reverie /state
WORKDIR /srv/reverie
ENV REVERIE_STATE=/state \
    REVERIE_CHECKPOINTS=/srv/reverie/checkpoints
VOLUME /state

FROM node:24-slim AS studio
WORKDIR /studio
COPY studio/package.json studio/package-lock.json studio/.npmrc ./
RUN npm ci --omit=dev --no-audit --no-fund --ignore-scripts
COPY studio .
RUN npm run build

FROM base AS api
COPY requirements/api.lock requirements/api.lock
RUN pip install --require-hashes --requirement requirements/api.lock
COPY requirements/postgresql.lock requirements/postgresql.lock
RUN pip install --require-hashes --requirement requirements/postgresql.lock
COPY requirements/s3.lock requirements/s3.lock
RUN pip install --require-hashes --requirement requirements/s3.lock
# Traces (REVERIE_TRACING=true) need more packages: --build-arg OTEL=1
ARG OTEL=""
COPY requirements/otel.lock requirements/otel.lock
RUN test -z "$OTEL" || pip install --require-hashes --requirement requirements/otel.lock
COPY checkpoints checkpoints
COPY core core
COPY api api
COPY --from=studio /studio/dist studio/dist
USER reverie
ENV REVERIE_HOST=0.0.0.0 \
    REVERIE_PORT=8000
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "api"]

FROM base AS worker
# An index that holds the wanted build of torch, where pip's own one does not: --build-arg TORCH_INDEX=URL
ARG TORCH_INDEX=""
COPY requirements/torch.txt requirements/torch.txt
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --requirement requirements/torch.txt
COPY requirements/worker.lock requirements/worker.lock
RUN pip install --require-hashes --requirement requirements/worker.lock
COPY requirements/postgresql.lock requirements/postgresql.lock
RUN pip install --require-hashes --requirement requirements/postgresql.lock
COPY requirements/s3.lock requirements/s3.lock
RUN pip install --require-hashes --requirement requirements/s3.lock
ARG OTEL=""
COPY requirements/otel.lock requirements/otel.lock
RUN test -z "$OTEL" || pip install --require-hashes --requirement requirements/otel.lock
COPY docker/alive.py docker/alive.py
COPY checkpoints checkpoints
COPY models models
COPY core core
COPY workers workers
USER reverie
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["python", "docker/alive.py"]
CMD ["python", "-m", "workers.inference"]
