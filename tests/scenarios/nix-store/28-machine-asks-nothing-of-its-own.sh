# While the daemon stands still: nothing that is, or is not, in a path of the machine's own store is looked up below.
. "$SCENARIOS/nix-store/files/kit.sh"
mkdir -p "$work/own-tree/some/where"
printf 'own\n' >"$work/own-tree/some/where/file"
own=$(nix-store --add "$work/own-tree")
systemctl reload castore-fs-nix-store.service
kill -STOP "$(pid)"
status=0
timeout 10 sh -euc '
    ls -R "$1" >/dev/null
    grep -qx own "$1/some/where/file"
    ! test -e "$1/none"
    ! test -e "$1/some/none"
    ! test -e "$1/some/where/none"
' asked "$own" || status=$?
kill -CONT "$(pid)"
[ "$status" = 0 ] || fail "a path of the machine's own store waited for the daemon"
nix-store --delete "$own"
