# The daemon is killed, and restarted, while a build runs, which then goes on and ends.
. "$SCENARIOS/nix-store/files/kit.sh"
tool=$(cat "$work/tool") dep=$(cat "$work/dep")
kill_it() { systemctl kill --signal=SIGKILL castore-fs.service; }
restart_it() { systemctl restart castore-fs.service; }
chmod 755 "$work"
for how in kill_it restart_it; do
    rm -f "$work/begun" "$work/go"
    in_the_open nix-build --no-out-link -E "$(made "built-$how" "
        echo >$work/begun
        until test -e $work/go; do :; done
        read line <$(below "$tool")
        echo \$line $(below "$tool") >\$out")" >"$work/built" &
    building=$!
    within 60 test -e "$work/begun"
    # A connection is kept once it has been quiet for 100 ms.
    sleep 2
    before=$(pid)
    $how
    within 60 another_than "$before"
    touch "$work/go"
    wait "$building" || fail "$how: the build failed"
    [ "$(cat "$(cat "$work/built")")" = "$dep $tool" ] || fail "$how: it was built from something else"
    only_below "$tool"
done
systemctl stop far.service
# Without the network after a start: what is known is valid, and what has come is there.
systemctl restart castore-fs.service
$nix path-info -r "$tool"
[ "$(cat "$tool")" = "$dep" ] || fail "what had come is not there"
if ! test -e /run/current-system; then
    drop_nix_store
    systemctl stop castore-fs-nix-store.socket
    rm /run/systemd/system/castore-fs-nix-store.socket /run/systemd/system/castore-fs.service.d/nix-store.conf
    systemctl daemon-reload
fi
