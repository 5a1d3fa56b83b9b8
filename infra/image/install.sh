#!/bin/bash
# Makes this machine a node that joins without installing anything: GPU driver, Python environment
# with Tidegate and vLLM, weights. Run as root, once, on Debian or Ubuntu, while an image is built
# (infra/images.py on EC2, Containerfile for containers). It needs the internet; a node doesn't.
#
#   TIDEGATE_WHEEL         wheel of Tidegate: a path or an https URL
#   TIDEGATE_WHEEL_SHA256  its SHA-256; another content is refused
#   TIDEGATE_MODELS        Hugging Face repositories, "owner/name@revision", with spaces between
#   TIDEGATE_DRIVER        NVIDIA driver package, such as nvidia-driver-580-server-open; "" = none
#   TIDEGATE_PYTHON        Python version; every node of a Ray cluster needs the same
#   TIDEGATE_USER          account that runs Ray; it may install a newer wheel later
#   TIDEGATE_EXTRA         extra of the wheel: gpu (vLLM for CUDA) or cpu
#   TIDEGATE_ROOT          where everything goes; /opt/tidegate unless tests say otherwise
set -euo pipefail

root=${TIDEGATE_ROOT:-/opt/tidegate}
python=${TIDEGATE_PYTHON:-3.11}
user=${TIDEGATE_USER:-root}
extra=${TIDEGATE_EXTRA:-gpu}
uv_version=0.13.9
export DEBIAN_FRONTEND=noninteractive

fetch_wheel() {
    mkdir -p "$root/wheel"
    case "$TIDEGATE_WHEEL" in
    https://*) name=${TIDEGATE_WHEEL%%\?*} && name=${name##*/}
        # The URL may carry a signature: it must not stand in a process list or a log.
        printf 'url = "%s"\n' "$TIDEGATE_WHEEL" |
            curl --fail --silent --show-error --location --retry 3 --config - \
                --output "$root/wheel/$name" ;;
    *) name=${TIDEGATE_WHEEL##*/}
        cp "$TIDEGATE_WHEEL" "$root/wheel/$name" ;;
    esac
    echo "$TIDEGATE_WHEEL_SHA256  $root/wheel/$name" | sha256sum --check --quiet -
    wheel=$root/wheel/$name
}

install_packages() {
    apt-get update -q
    apt-get install -q -y --no-install-recommends \
        ca-certificates curl rsync openssh-server python3-venv ${TIDEGATE_DRIVER:-}
}

install_python() {
    python3 -m venv "$root/uv"
    "$root/uv/bin/pip" install -q "uv==$uv_version"
    UV_PYTHON_INSTALL_DIR=$root/python "$root/uv/bin/uv" venv -q --seed --python "$python" "$root/venv"
    "$root/uv/bin/uv" pip install -q --python "$root/venv/bin/python" --compile-bytecode \
        "tidegate[$extra] @ file://$wheel"
}

fetch_weights() {
    export HF_HOME=$root/huggingface
    for model in ${TIDEGATE_MODELS:-}; do
        "$root/venv/bin/hf" download "${model%@*}" --revision "${model##*@}" --quiet
    done
}

# What updates itself at boot delays a node and may restart its driver.
stop_updates() {
    for unit in unattended-upgrades.service apt-daily.timer apt-daily-upgrade.timer; do
        systemctl disable "$unit" 2>/dev/null || true
    done
}

# Clones must have identities of their own, and nothing of the builder's.
forget_identity() {
    rm -f /etc/ssh/ssh_host_* /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys
    : >/etc/machine-id
    if command -v cloud-init >/dev/null; then
        cloud-init clean --logs --seed
    fi
    apt-get clean
}

install_packages
fetch_wheel
install_python
fetch_weights
if [ -z "${TIDEGATE_ROOT:-}" ]; then
    chown -R "$user" "$root"
    stop_updates
    forget_identity
fi
"$root/venv/bin/python" -c 'import cluster, deployments, ray; print("installed Ray", ray.__version__)'
