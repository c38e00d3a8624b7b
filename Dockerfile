# syntax=docker/dockerfile:1
# The Docker image of cxr_node.
#
#   docker build -t cxr-node .                                   PyTorch for CPUs
#   docker build -t cxr-node:cuda --build-arg VARIANT=cuda .     PyTorch with CUDA; run it with --gpus all
#
# At a site with its own package index: --build-arg TORCH_INDEX=https://.../, or TORCH_INDEX= where pip's own configuration,
# mounted at /etc/pip.conf, names one that has PyTorch. `make image-test` builds it so, and runs it.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG VARIANT=cpu
# PyTorch's own index holds the builds without CUDA; PyPI's build for Linux holds CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
RUN python -m venv /opt/cxr-node
ENV PATH=/opt/cxr-node/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

# Layers that rarely change come first, so that a change of the program does not reinstall PyTorch.
COPY constraints.txt ./
RUN set -eu; \
    case "$VARIANT" in \
        cpu) version=$(sed -n 's/^torch==//p' constraints.txt); \
             pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "torch==$version+cpu" ;; \
        cuda) pip install -c constraints.txt torch ;; \
        *) echo "VARIANT is cpu or cuda, not '$VARIANT'" >&2; exit 1 ;; \
    esac
COPY setup.cfg ./
RUN python -c "from configparser import RawConfigParser as P; p = P(); p.read('setup.cfg'); e = p['options.extras_require']; \
        print(p['options']['install_requires'], e['scale'], e['openvino'], e['web'])" > requirements.txt \
    && pip install -c constraints.txt -r requirements.txt
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY conf ./conf
COPY cxr_node ./cxr_node
# The last use of pip: the image does not contain it.
RUN pip install -c constraints.txt --no-deps . && pip check && pip uninstall -y pip


FROM ${PYTHON_IMAGE}
RUN groupadd --system --gid 10001 cxr-node \
    && useradd --system --uid 10001 --gid cxr-node --home-dir /var/lib/cxr-node --no-create-home --shell /usr/sbin/nologin cxr-node \
    && install -d -m 700 -o cxr-node -g cxr-node /var/lib/cxr-node \
    && install -d -m 755 /etc/cxr-node \
    && echo "# Mount the settings here, with [[senders]]: until they say who may send, the node does not start." \
        "/opt/cxr-node/share/cxr-node/cxr-node.example.toml shows every key." > /etc/cxr-node/cxr-node.toml
COPY --from=build /opt/cxr-node /opt/cxr-node

# In a container the node listens on all addresses, which is why the settings have to say who may send ([[senders]], or
# receive.accept_unknown_senders = "anywhere"). It writes nowhere but in its volume and /tmp: run it with
# --read-only --tmpfs /tmp.
ENV PATH=/opt/cxr-node/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    CXR_NODE__NODE__HOST=0.0.0.0 \
    CXR_NODE__WEB__HOST=0.0.0.0 \
    CXR_NODE__NODE__DATA_DIR=/var/lib/cxr-node
USER cxr-node
WORKDIR /var/lib/cxr-node
VOLUME /var/lib/cxr-node
EXPOSE 11112 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s --retries=3 \
    CMD ["python", "-m", "cxr_node.node.healthcheck"]
ENTRYPOINT ["cxr-node"]
CMD ["serve", "--config", "/etc/cxr-node/cxr-node.toml"]
