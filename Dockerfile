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

# The packages of the API, without what no request needs: tests, stubs and debug symbols. Libraries that wheels bring in
# NAME.libs are left as they are, because strip would break their patched headers.
FROM base AS api-packages
RUN apt-get update -qq && apt-get install --yes -qq --no-install-recommends binutils
COPY requirements/api.lock requirements/api.lock
RUN pip install --no-compile --prefix /packages --require-hashes --requirement requirements/api.lock
COPY requirements/postgresql.lock requirements/postgresql.lock
RUN pip install --no-compile --prefix /packages --require-hashes --requirement requirements/postgresql.lock
COPY requirements/s3.lock requirements/s3.lock
RUN pip install --no-compile --prefix /packages --require-hashes --requirement requirements/s3.lock
# Traces (REVERIE_TRACING=true) need more packages: --build-arg OTEL=1
ARG OTEL=""
COPY requirements/otel.lock requirements/otel.lock
RUN test -z "$OTEL" || pip install --no-compile --prefix /packages --require-hashes --requirement requirements/otel.lock
# What no part of the API uses: the command `celery`, uvicorn's reloader and websockets, redoc, other databases, random
# numbers of numpy, and Pillow's AVIF and fonts.
ARG UNUSED="click_repl prompt_toolkit wcwidth watchfiles websockets yaml numpy/f2py numpy/distutils numpy/_core/include \
    numpy/random fastapi_offline/static/redoc.standalone.js sqlalchemy/testing alembic/testing \
    sqlalchemy/dialects/mssql sqlalchemy/dialects/mysql sqlalchemy/dialects/oracle \
    PIL/_avif.* PIL/_imagingft.* PIL/_imagingtk.* pillow.libs/libavif-* pillow.libs/libharfbuzz-* pillow.libs/libfreetype-* \
    pillow.libs/libpng16-* pillow.libs/libbrotli*"
RUN cd /packages/lib/python3.*/site-packages && rm -r $UNUSED \
    && find . -type d -name tests -prune -exec rm -r {} + \
    && find . -name '*.py[ix]' -delete && find . -name '*.pxd' -delete && find . -name '*.[ach]' -delete \
    && find . -name '*.so' -not -path '*.libs/*' -exec strip --strip-unneeded {} +

FROM base AS api
COPY --from=api-packages /packages /usr/local
COPY checkpoints checkpoints
COPY core core
COPY api api
COPY --from=studio /studio/dist studio/dist
# The root file system is read-only later: what an API process imports is compiled now, except the standard library.
RUN PYTHONDONTWRITEBYTECODE="" python -c "import api.__main__, api.server, core.backup, core.datasets.convert, PIL._webp, PIL._imagingcms, psycopg, obstore" \
    && find /usr/local/lib/python3.* -name '*.pyc' -not -path '*/site-packages/*' -delete
USER reverie
ENV REVERIE_HOST=0.0.0.0 \
    REVERIE_PORT=8000
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-I", "-S", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
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
ENV REVERIE_HEARTBEAT_FILE=/tmp/heartbeat
STOPSIGNAL SIGTERM
# isolated and without site-packages, so that the check takes milliseconds on a busy machine, too
HEALTHCHECK --interval=10s --timeout=10s --start-period=120s \
    CMD ["python", "-I", "-S", "docker/alive.py"]
CMD ["python", "-m", "workers.inference"]
