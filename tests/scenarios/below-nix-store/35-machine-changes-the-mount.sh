# A reload with another store makes the mount anew, and what is below /nix/store is that mount's; one with another
# option of the mount, too. Nothing else is reloaded or restarted by hand.
. "$SCENARIOS/kit.sh"
name=44444444444444444444444444444444-elsewhere
castore-fs import --store "local:$work/elsewhere" --name "$name" "$work/tree"
! test -e "/nix/store/$name" || fail "it is there already"
main_pid() { systemctl show --property=MainPID --value castore-fs.service; }
pid=$(main_pid)
cat >"$work/config.toml" <<TOML
[stores.elsewhere]
url = "local:$work/elsewhere"
[mounts.store]
path = "/run/castore-fs-lower"
list-root = "empty"
names = "store-paths"
when-unreachable = "absent"
TOML
# On NixOS this takes the place of a link into the Nix store.
cp --remove-destination "$work/config.toml" /etc/castore-fs/config.toml
systemctl reload castore-fs.service
within 30 cat "/nix/store/$name/file"
same_tree "$work/tree" "/nix/store/$name"
test -e /nix/store/22222222222222222222222222222222-own || test -e /run/current-system ||
    fail "the machine's own store is gone"
! test -e /nix/store/00000000000000000000000000000000-tree || fail "what the other store has is still there"
echo 'uid = 1234' >>/etc/castore-fs/config.toml
systemctl reload castore-fs.service
owned() { [ "$(stat -c %u "/nix/store/$name/file")" = 1234 ]; }
within 30 owned
[ "$(main_pid)" = "$pid" ] || fail "the daemon was restarted"
# A reload that leaves the mount leaves the overlay.
overlay() { findmnt --noheadings --output ID --mountpoint /nix/store; }
before=$(overlay)
systemctl reload castore-fs.service
systemctl reload castore-fs-nix-store.service
[ "$(overlay)" = "$before" ] || fail "the overlay was made anew"
# As it was.
castore-fs import --store "local:$work/elsewhere" --name 00000000000000000000000000000000-tree "$work/tree"
