#!/bin/bash
# Packs SOURCE into OUT on the Ray cluster that this machine belongs to: examples/pack_on_ray.sh SOURCE OUT
# `ray start --head` on one machine and `ray start --address HEAD:6379` on the others make one. OUT is a folder that all
# of them share, or an address in a store.
set -euo pipefail
exec petseg-shard "$1" "$2" --on ray "${@:3}"
