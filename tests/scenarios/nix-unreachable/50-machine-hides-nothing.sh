# A path that is also below: deleted here, it is the one below again.
. "$SCENARIOS/nix-unreachable/files/kit.sh"
printf 'both\n' >"$work/both"
path=$(nix-store --add "$work/both")
castore-fs import --store "$far" "$path"
within 30 castore-fs ls --store grpc+unix:/run/castore-fs-far.sock "${path##*/}"
# So that the overlay knows of the one below.
systemctl restart castore-fs-nix-store.service
cat "$path"
nix-store --delete "$path"
! test -e "$upper/${path##*/}" || test -c "$upper/${path##*/}" || fail "it is still in the machine's own store"
systemctl reload castore-fs-nix-store.service
[ "$(whiteouts)" = 0 ] || fail "there are whiteouts: $(ls -l "$upper")"
within 30 look_again "$path"
# And Nix takes it into its own store anew.
[ "$(nix-store --add "$work/both")" = "$path" ] || fail "it has another path"
timeout 30 nix-store --verify-path "$path"
