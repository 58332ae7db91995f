# The daemon is killed while Nix works on the layers.
. "$SCENARIOS/nix-unreachable/files/kit.sh"
# Of the step before.
nix-collect-garbage
for round in 1 2 3; do
    systemctl kill --signal=SIGKILL castore-fs.service
    works "round-$round"
done
systemctl stop far.service
systemctl stop castore-fs-nix-store.service
ls /nix/store >/dev/null || fail "the machine's own store is gone"
drop_nix_store
