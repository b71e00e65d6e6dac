#!/usr/bin/env bash
# Builds an image with buildah alone, as root and without a container engine: build.sh cpu|cuda [BUILDAH ARGUMENT ...]
#
# Where Docker works, `docker build --target cpu --tag logit-fusion:VERSION-cpu .` does the same. pip's settings on this
# machine (index, folders of wheels, certificates) hold inside the build too, and stay out of the image. If the base
# image cannot be pulled, debootstrap makes it from Debian's packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
source deploy/image/buildah.sh
flavour=$1
shift

base=docker.io/library/debian:bookworm-slim
if ! buildah_here inspect --type image "$base" >/dev/null 2>&1 && ! buildah_here pull --quiet "$base" 2>/dev/null; then
    echo "$base cannot be pulled: making it with debootstrap"
    root=$(mktemp --directory)
    debootstrap --variant=minbase --include=ca-certificates bookworm "$root" >/dev/null
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    container=$(buildah_here from scratch)
    buildah_here add --quiet "$container" "$root" / >/dev/null
    buildah_here commit --quiet --rm "$container" "$base" >/dev/null
fi

# Folders and files that the settings name are mounted into the build.
pip_conf=$(mktemp)
trap 'rm -rf "$pip_conf" "${root:-}"' EXIT
echo "[global]" >"$pip_conf"
settings=$("${PYTHON:-python3}" -m pip config list)
mounts=()
for name in index-url extra-index-url find-links cert; do
    value=$(sed -n "s/^[^.]*\.$name='\(.*\)'\$/\1/p" <<<"$settings" | tail -n 1)
    for place in $value; do
        if [[ $place == file://* ]]; then
            # The pages of such an index point to files beside it.
            folder=$(dirname "${place#file://}")
            mounts+=(--volume "$folder:$folder:ro")
        elif [ -d "$place" ]; then
            mounts+=(--volume "$place:$place:ro")
        elif [ -f "$place" ]; then
            # Not in its own place, where the build installs certificates.
            mounts+=(--volume "$place:/run/pip-$name:ro")
            value=/run/pip-$name
        fi
    done
    if [ -n "$value" ]; then
        echo "$name = $value" >>"$pip_conf"
    fi
done

# Docker's format, because OCI's has no health check.
buildah_here build --isolation chroot --format docker --target "$flavour" --tag "logit-fusion:$flavour" \
    --secret "id=pip,src=$pip_conf" "${mounts[@]}" "$@" .
