# The daemon on glibc, because the PKCS#11 libraries of HSM vendors are linked against it:
#
#     docker build -t claviger:0.1.0 .
#     docker build -t claviger:0.1.0-softhsm --build-arg SOFTHSM=1 .
#
# SoftHSM keeps keys in files, so it is in images for trials only. A vendor's library comes by a volume (helm/claviger) or
# by an image built on this one.

ARG DEBIAN=bookworm
ARG SOFTHSM=0

FROM rust:1.95-slim-${DEBIAN} AS build
WORKDIR /src
COPY . .
# What was compiled before is in the caches; the binary has to leave them within the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin claviger \
    && strip -o /claviger target/release/claviger

FROM debian:${DEBIAN}-slim AS runtime
# The CAs are for AWS KMS and for issuers with a jwks_url.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 claviger \
    && useradd --uid 10001 --gid claviger --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin claviger
COPY --from=build /claviger /usr/local/bin/claviger

FROM runtime AS softhsm-0

FROM runtime AS softhsm-1
RUN apt-get update \
    && apt-get install -y --no-install-recommends softhsm2 \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o claviger -g claviger -m 0700 /var/lib/softhsm/tokens \
    && chmod 0755 /var/lib/softhsm \
    && printf 'directories.tokendir = /var/lib/softhsm/tokens\nobjectstore.backend = file\n' >/etc/softhsm2.conf
ENV SOFTHSM2_CONF=/etc/softhsm2.conf

FROM softhsm-${SOFTHSM}
# By number, so that a cluster sees that it is not root.
USER 10001:10001
# gRPC, public, ops.
EXPOSE 8443 8444 9090
ENTRYPOINT ["/usr/local/bin/claviger"]
CMD ["serve", "--config", "/etc/claviger/claviger.toml"]
