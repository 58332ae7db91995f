# On a port below 1024, for which the unit has the capability, and the process has no other that it need not.
. "$SCENARIOS/kit.sh"
make_tree "$work/tree"
castore-fs import --store local:/var/lib/castore-fs "$work/tree"
castore-fs ls --store grpc+http://127.0.0.1:443 | grep -q tree || fail "it does not serve there"
