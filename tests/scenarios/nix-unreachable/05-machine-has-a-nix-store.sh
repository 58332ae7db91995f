# On NixOS it is there, with the module's unit. Elsewhere Nix is a program of the distribution's, and its
# store is made here.
. "$SCENARIOS/nix-unreachable/files/kit.sh"
make_nix_store
mkdir "$work/tree"
printf 'far\n' >"$work/tree/file"
castore-fs import --store "$far" --name 00000000000000000000000000000000-seen "$work/tree"
start_far
# What Nix does without castore-fs: the collector is to free as many paths with it.
systemctl stop castore-fs-nix-store.service
nix-collect-garbage
upper=/nix/store works without
systemctl start castore-fs-nix-store.service
within 30 look_again /nix/store/00000000000000000000000000000000-seen/file
