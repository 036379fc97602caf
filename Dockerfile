# One image for listener, worker, scheduler, web and arictl; the command says which. Not built on an engine yet.

# Only for compose.yaml's profile `asterisk`: no other stage needs it.
FROM debian:sid-slim AS asterisk
RUN apt-get update \
    && apt-get install --yes --no-install-recommends asterisk \
    && rm -rf /var/lib/apt/lists/* \
    && chown -R root:root /etc/asterisk /var/lib/asterisk /var/log/asterisk /var/spool/asterisk \
    && mkdir -p /run/asterisk
CMD ["asterisk", "-f"]

FROM python:3.11-slim-bookworm AS build
WORKDIR /source
# What is needed to run: neither the simulator nor the development stack.
COPY pyproject.toml README.md LICENSE ./
COPY arictl arictl
COPY console console
COPY listener listener
COPY scheduler scheduler
COPY shared shared
COPY workers workers
# Of pyproject.toml's extras, `[otel]` for traces: docker build --build-arg EXTRAS=[otel].
ARG EXTRAS=""
RUN python -m venv /opt/ari-pipeline && /opt/ari-pipeline/bin/pip install --no-cache-dir ".${EXTRAS}"

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin ari-pipeline
COPY --from=build /opt/ari-pipeline /opt/ari-pipeline
ENV PATH=/opt/ari-pipeline/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HEALTH_FILE=/dev/shm/ari-pipeline-alive \
    RES_OPTIONS="timeout:2 attempts:2"
# Nothing is in it: no .env is found, settings come from the environment.
WORKDIR /srv
USER 10001
CMD ["arictl", "--help"]
