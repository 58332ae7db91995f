# The service as the module writes it: a store that cannot be collected keeps no other from being collected, and fails
# the service.
. "$SCENARIOS/kit.sh"
! test -e /run/current-system || exit 0
with_garbage() {
    mkdir -p "$work/$1"
    printf 'garbage\n' >"$work/garbage"
    castore-fs import --store "local:$work/$1" "$work/garbage"
    castore-fs rm --store "local:$work/$1" garbage
}
left() { castore-fs gc --dry-run --json --grace 0s --store "local:$work/$1"; }
with_garbage broken
with_garbage disk
as_here "$SCENARIOS/garbage/files/castore-fs-gc.service" |
    sed -e "s#local:/srv/#local:$work/#g" >/run/systemd/system/castore-fs-gc.service
systemctl daemon-reload
left disk >"$work/with-garbage"
systemctl start castore-fs-gc.service
left disk >"$work/without"
! cmp -s "$work/with-garbage" "$work/without" || fail "nothing was collected: $(cat "$work/without")"
left broken | cmp - "$work/without" || fail "one store of two was collected"
rm -r "$work/broken"
printf 'no store\n' >"$work/broken"
with_garbage disk
! systemctl start castore-fs-gc.service || fail "it is not said that a store cannot be collected"
left disk | cmp - "$work/without" || fail "the other store was not collected"
rm /run/systemd/system/castore-fs-gc.service
systemctl daemon-reload
