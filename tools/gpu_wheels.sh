#!/usr/bin/env bash
# Makes a folder of wheels for the GPU proof on a machine without a network, in parts of at most 30 MB, as it may have to be carried.
#
#   tools/gpu_wheels.sh wheels              # here, in the environment of a checkout, for Python 3.12 on x86-64 Linux
#   tools/gpu_wheels.sh --install wheels    # there: joins the parts and installs them below wheels/site
#
# There: PYTHONPATH=wheels/site python3 -m benchmarks.on_gpu
# What a machine for torch has of its own is not among them: torch, torchvision, numpy, scipy, scikit-learn.
set -euo pipefail

PART=30000000

# What asyrp needs here and its packages need in turn, as NAME==VERSION.
needed() {
    python3 - <<'PY'
import re
from importlib.metadata import distribution

THERE = {"torch", "torchvision", "triton", "numpy", "scipy", "scikit-learn", "setuptools", "pip"}
seen: dict[str, str] = {}


def add(name: str) -> None:
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name in seen or name in THERE or name.startswith(("nvidia-", "cuda-")):
        return
    try:
        found = distribution(name)
    except ModuleNotFoundError:  # for another system, or an extra
        return
    seen[name] = found.version
    for requirement in found.requires or ():
        if "extra ==" not in requirement:
            add(re.match(r"[\w.-]+", requirement)[0])


add("asyrp")
seen.pop("asyrp")
print(*(f"{name}=={version}" for name, version in seen.items()))
PY
}

download() {
    mkdir -p "$1/all" "$1/part-0"
    # shellcheck disable=SC2046
    python3 -m pip download --quiet --no-deps --dest "$1/all" --only-binary=:all: --python-version 3.12 \
        --implementation cp --platform manylinux_2_34_x86_64 --platform manylinux_2_31_x86_64 \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_24_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux1_x86_64 $(needed)
    local part=0 bytes=0 size piece wheel
    for wheel in "$1"/all/*.whl; do
        if [ "$(stat -c %s "$wheel")" -gt $PART ]; then
            split -b $PART -d -a 2 "$wheel" "$wheel."
            rm "$wheel"
        fi
        for piece in "$wheel"*; do
            size=$(stat -c %s "$piece")
            if [ $((bytes + size)) -gt $PART ]; then
                part=$((part + 1)) bytes=0
                mkdir -p "$1/part-$part"
            fi
            mv "$piece" "$1/part-$part/"
            bytes=$((bytes + size))
        done
    done
    rmdir "$1/all"
    du -sm "$1"/part-*
}

install() {
    local first name
    mkdir -p "$1/joined"
    for first in "$1"/part-*/*.whl.00; do
        [ -e "$first" ] || continue
        name=$(basename "${first%.00}")
        cat "$1"/part-*/"$name".[0-9][0-9] > "$1/joined/$name"
    done
    find "$1"/part-* "$1/joined" -name '*.whl' -print0 |
        xargs -0 python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$1/site"
    # A run records the version of asyrp, which runs from the checkout there and is not installed.
    mkdir -p "$1/site/asyrp-0.0.dist-info"
    printf 'Metadata-Version: 2.1\nName: asyrp\nVersion: 0.0\n' > "$1/site/asyrp-0.0.dist-info/METADATA"
}

case "${1:-}" in
    --install) install "${2:?the folder of wheels}" ;;
    "" | -*) sed -n '2,8s/^# \{0,1\}//p' "$0" && exit 2 ;;
    *) download "$1" ;;
esac
