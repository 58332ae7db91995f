# A second mount comes, and programs on the first one do not notice.
. "$SCENARIOS/kit.sh"
make_tree "$work/tree"
castore-fs import "$work/tree"
exec 3</srv/first/tree/large
pid=$(systemctl show --property=MainPID --value castore-fs.service)
mount_id=$(findmnt --noheadings --output ID --mountpoint /srv/first)
# On NixOS this is a link into the Nix store, in whose place we put a file.
cp --remove-destination "$SCENARIOS/reload/files/second.toml" /etc/castore-fs/config.toml
systemctl reload castore-fs.service
mountpoint -q /srv/second || fail "the added mount is not there"
same_tree "$work/tree" /srv/second/tree
cmp "$work/tree/large" - <&3
[ "$(systemctl show --property=MainPID --value castore-fs.service)" = "$pid" ] || fail "a reload restarted the daemon"
[ "$(findmnt --noheadings --output ID --mountpoint /srv/first)" = "$mount_id" ] || fail "the first mount was made anew"
