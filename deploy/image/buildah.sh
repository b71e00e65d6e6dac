# Sourced by the scripts beside it: buildah with a storage of its own under build/, which needs no kernel support.
storage=$PWD/build/containers
mkdir -p "$storage"

buildah_here() {
    buildah --storage-driver vfs --root "$storage/root" --runroot "$storage/run" "$@"
}
